"""The plain TCP service behind every system: it echoes, or sends as many bytes as asked for.

Run as `python -m bench.backend`; it prints its port, and serves until its standard input ends,
so it does not outlive the benchmark.

A connection is an echo, unless its first bytes are `BULK n` padded to a request's length: then n
bytes follow, cut from the endless repetition of `PATTERN`. After `SINK n`, likewise, n bytes of any
kind are taken, and the request is sent back when they are there.
"""

from __future__ import annotations

import select
import socket
import sys
from typing import Final

PATTERN: Final = bytes(range(256)) * 1024
REQUEST: Final = 100
"""Bytes of a small request, and of its answer."""


def bulk_request(size: int) -> bytes:
    """Ask for `size` bytes."""
    return b"BULK %d" % size + b" " * (REQUEST - len(b"BULK %d" % size))


def sink_request(size: int) -> bytes:
    """Announce `size` bytes."""
    return b"SINK %d" % size + b" " * (REQUEST - len(b"SINK %d" % size))


class Service:
    """All connections of the backend, on one epoll set."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.epoll = select.epoll()
        self.peers: dict[int, socket.socket] = {}
        self.owed: dict[int, int] = {}
        """Bytes still to send, by descriptor; only for bulk connections."""
        self.sent: dict[int, int] = {}
        self.expected: dict[int, int] = {}
        """Bytes still to come, by descriptor."""

    def run(self, until: int) -> None:
        """Serve until the descriptor `until` is readable, which is its end of file."""
        self.epoll.register(self.listener, select.EPOLLIN)
        self.epoll.register(until, select.EPOLLIN)
        while True:
            for fd, happened in self.epoll.poll():
                if fd == until:
                    return
                if fd == self.listener.fileno():
                    self.accept()
                elif happened & select.EPOLLOUT:
                    self.send(fd)
                else:
                    self.receive(fd)

    def accept(self) -> None:
        """Take one connection."""
        peer, _ = self.listener.accept()
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers[peer.fileno()] = peer
        self.epoll.register(peer, select.EPOLLIN)

    def receive(self, fd: int) -> None:
        """Echo what came, or begin to send what it asks for."""
        try:
            data = self.peers[fd].recv(65536)
            if not data:
                return self.close(fd)
            if fd in self.expected or data.startswith(b"SINK "):
                return self.take(fd, data)
            if data.startswith(b"BULK "):
                self.owed[fd] = int(data[5:])
                self.sent[fd] = 0
                return self.epoll.modify(fd, select.EPOLLOUT)
            # A request is small, so it always fits the socket buffer of a peer that reads.
            self.peers[fd].sendall(data)
        except OSError:
            self.close(fd)

    def take(self, fd: int, data: bytes) -> None:
        """Take what was announced, and answer when all is there."""
        if fd not in self.expected:
            self.expected[fd] = int(data[5:REQUEST]) + REQUEST
        self.expected[fd] -= len(data)
        if not self.expected[fd]:
            del self.expected[fd]
            self.peers[fd].sendall(b"." * REQUEST)

    def send(self, fd: int) -> None:
        """Send more of the pattern, as much as the socket takes at once."""
        start = self.sent[fd] % len(PATTERN)
        try:
            count = self.peers[fd].send(memoryview(PATTERN)[start:][: self.owed[fd]])
        except OSError:
            return self.close(fd)
        self.sent[fd] += count
        self.owed[fd] -= count
        if not self.owed[fd]:
            self.epoll.modify(fd, select.EPOLLIN)
        return None

    def close(self, fd: int) -> None:
        """Forget a connection."""
        self.epoll.unregister(fd)
        self.peers.pop(fd).close()
        self.owed.pop(fd, None)
        self.sent.pop(fd, None)
        self.expected.pop(fd, None)


def main() -> None:
    """Listen on a free port of loopback, print it, and serve."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        print(listener.getsockname()[1], flush=True)
        Service(listener).run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
