"""Clients of our own, for what Debian's generators cannot do: thousands of connections, and names.

They speak TLS 1.3 and check what they receive. CPU time is measured at the proxy only, so they
need not be fast; they are the same for every system. Every handshake is a full one: a session is
never offered again. Each wait on a socket ends after `PATIENCE` seconds, and whatever goes wrong
raises LoadError, for a measurement with failed connections means nothing.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.backend import REQUEST

PATIENCE: Final = 15.0
"""Seconds that any single wait may take."""
MESSAGE: Final = b"a small request, and its answer too;".ljust(REQUEST, b".")
BODY: Final = "a small answer to a small request......."
HANDSHAKES_AT_ONCE: Final = 8


Held = ssl.SSLSocket
"""A connection that is kept open."""


class LoadError(Exception):
    """A system did not answer as it must, so there is no figure."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """A request, and how its answer begins and ends."""

    request: bytes
    start: bytes
    end: bytes

    def complete(self, got: bytes) -> bool:
        """Tell whether an answer is all there; raises LoadError when it is another."""
        if not got.startswith(self.start[: len(got)]) or len(got) > 1000:
            raise LoadError(f"{len(got)} bytes came back that are not the ones expected")
        return len(got) >= len(self.start) and got.endswith(self.end)


ECHO: Final = Protocol(MESSAGE, MESSAGE, MESSAGE)
"""What bench.backend speaks."""
HTTP: Final = Protocol(
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 200 ", BODY.encode()
)


@dataclass(frozen=True, slots=True)
class Client:
    """Whom to connect to, and how. Without a context there is no TLS."""

    port: int
    context: ssl.SSLContext | None
    protocol: Protocol = ECHO
    name: str = "localhost"

    def exchange(self, connection: socket.socket) -> None:
        """Send one small request and check its answer; raises OSError, LoadError."""
        exchange(connection, self.protocol)

    def connect_plain(self) -> socket.socket:
        """Connect without TLS; raises OSError."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def connect(self) -> ssl.SSLSocket:
        """Connect and complete a full handshake; raises OSError."""
        assert self.context is not None
        with ExitStack() as undo:
            plain = undo.enter_context(self.connect_plain())
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secure = self.context.wrap_socket(plain, server_hostname=self.name)
            undo.pop_all()
        return secure


def client(
    port: int, authority: Path, protocol: Protocol = ECHO, name: str = "localhost"
) -> Client:
    """Give a TLS 1.3 client that trusts `authority`."""
    context = ssl.create_default_context(cafile=str(authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return Client(port, context, protocol, name)


def exchange(connection: socket.socket, protocol: Protocol = ECHO) -> None:
    """Send one small request and check its answer; raises OSError, LoadError."""
    connection.sendall(protocol.request)
    answer = b""
    while not protocol.complete(answer):
        more = connection.recv(4096)
        if not more:
            raise LoadError("the connection ended before the answer to a small request")
        answer += more


def connections(to: Client, count: int) -> None:
    """Make `count` new connections, with one exchange and an orderly close each."""

    def some(share: int) -> None:
        for _ in range(share):
            with to.connect() as connection:
                to.exchange(connection)
                # Waits for the end, with which the connection is over at the proxy; hitch ends
                # without close_notify.
                with contextlib.suppress(ssl.SSLEOFError):
                    connection.unwrap().close()

    _at_once(some, _shares(count, HANDSHAKES_AT_ONCE))


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


def _at_once(work: Callable[[int], None], shares: list[int]) -> None:
    """Do each share of the work in a thread of its own; raises LoadError."""
    with ThreadPoolExecutor(len(shares)) as threads:
        done = [threads.submit(work, share) for share in shares]
    for result in done:
        try:
            result.result()
        except OSError as error:
            raise LoadError(f"a connection failed: {error}") from error


@contextmanager
def kept(to: Client, count: int) -> Iterator[list[Held]]:
    """Hold `count` connections open, each of which has done one exchange."""
    with ExitStack() as closing:
        held: list[Held] = []
        more(to, count, held, closing)
        yield held


def more(to: Client, count: int, held: list[Held], closing: ExitStack) -> None:
    """Open `count` connections more, which `closing` closes, and do an exchange on each."""

    def some(share: int) -> None:
        for _ in range(share):
            connection = closing.enter_context(to.connect())
            to.exchange(connection)
            held.append(connection)

    _at_once(some, _shares(count, HANDSHAKES_AT_ONCE))


def requests(held: list[Held], count: int, protocol: Protocol = ECHO) -> None:
    """Do `count` exchanges, one at a time on each of the connections `held`."""
    by_descriptor = {connection.fileno(): connection for connection in held}
    partial = dict.fromkeys(by_descriptor, b"")
    with select.epoll() as epoll:
        for fd, connection in by_descriptor.items():
            connection.setblocking(False)
            epoll.register(fd, select.EPOLLIN)
            connection.send(protocol.request)
        begun, ended = len(held), 0
        while ended < count:
            for fd in _readable(epoll):
                partial[fd] += _receive(by_descriptor[fd])
                if not protocol.complete(partial[fd]):
                    continue
                partial[fd] = b""
                ended += 1
                if begun < count:
                    by_descriptor[fd].send(protocol.request)
                    begun += 1


def _readable(epoll: select.epoll) -> list[int]:
    ready = [fd for fd, _ in epoll.poll(PATIENCE)]
    if not ready:
        raise LoadError(f"no answer to any small request for {PATIENCE} s")
    return ready


def _receive(connection: ssl.SSLSocket) -> bytes:
    try:
        data = connection.recv(4096)
    except ssl.SSLWantReadError:
        # A record that carries no data, such as a session ticket, or a part of a record.
        return b""
    except OSError as error:
        raise LoadError(f"a kept connection failed: {error}") from error
    if not data:
        raise LoadError("a kept connection was closed")
    return data
