"""`python -m bench.flood PORT RATE SECONDS`: handshakes that are begun and never finished.

Each connection sends a ClientHello, waits for the server's first bytes, which hold its signature,
and ends with RST. They are begun at a fixed rate whatever becomes of them. It prints how many were
begun and how many were answered.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import sys
import time
from collections import deque
from typing import Final

MOST: Final = 2000
"""Connections under way; the oldest is given up for one more."""
_RST: Final = struct.pack("ii", 1, 0)


def client_hello() -> bytes:
    """Give the first bytes of a TLS client."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        pass  # it waits for the server now
    return outgoing.read()


class Flood:
    """The connections under way."""

    def __init__(self, port: int) -> None:
        self.address = ("127.0.0.1", port)
        self.hello = client_hello()
        self.epoll = select.epoll()
        self.begun = 0
        self.answered = 0
        self._sockets: dict[int, socket.socket] = {}
        self._order: deque[int] = deque()

    def begin(self) -> None:
        """Begin one more."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        sock.connect_ex(self.address)
        self.begun += 1
        while len(self._sockets) >= MOST:
            self._end(self._order.popleft())
        self._sockets[sock.fileno()] = sock
        self._order.append(sock.fileno())
        # On loopback it is connected by now, unless the queue of the listener is full.
        waiting = select.EPOLLIN if self._say(sock) else select.EPOLLOUT
        self.epoll.register(sock, waiting)

    def turn(self, seconds: float) -> None:
        """See what has become of them."""
        for fd, events in self.epoll.poll(seconds):
            sock = self._sockets[fd]
            if events & select.EPOLLOUT and not events & select.EPOLLERR and self._say(sock):
                self.epoll.modify(fd, select.EPOLLIN)
                continue
            self.answered += bool(events & select.EPOLLIN)
            self._end(fd)

    def _say(self, sock: socket.socket) -> bool:
        try:
            return sock.send(self.hello) > 0
        except OSError:
            return False

    def _end(self, fd: int) -> None:
        if sock := self._sockets.pop(fd, None):
            sock.close()


def main() -> None:
    """Flood, and print what came of it."""
    port, rate, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    flood = Flood(port)
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        for _ in range(int(passed * rate) - flood.begun):
            flood.begin()
        flood.turn(0.001)
    print(flood.begun, flood.answered)


if __name__ == "__main__":
    main()
