"""A client, and the connection that an application has with it: each API, and each home."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from msgspec.structs import replace

from handfast.app import AsyncConnection, Connection
from handfast.handover.application import Facts, Offer, decode, encode
from handfast.tls.export import export
from handfast.tls.keys import Suite
from handfast.tls.reader import RecordReader
from handfast.tls.session import Peer, Session
from handfast.tls.writer import RecordWriter
from handfast.transport import kernel
from handfast.transport.probe import probe
from harness.homes import IN_KERNEL
from unit.tls.sessions import AES128, End, Peering, sessions

TIMEOUT = 10.0
HOMES = ["user", "kernel", "kernel-tx"] if IN_KERNEL else ["user"]
APIS = ["blocking", "asyncio"]

support = cache(probe)


class Client:
    """The other end: a socket that blocks, and a record layer."""

    def __init__(self, sock: socket.socket, session: Session) -> None:
        sock.settimeout(TIMEOUT)
        self.sock = sock
        self.end = End(session)
        self.peering = Peering(session.suite, session.write)
        self.opened = b""

    def write(self, data: bytes) -> None:
        self.sock.sendall(self.end.seal(data))

    def write_each(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.write(piece)

    def close_notify(self) -> None:
        self.sock.sendall(self.end.writer.alert(0))

    def read(self, count: int) -> bytes:
        """Read so many bytes; fewer at the end."""
        while len(self.opened) < count and (piece := self.sock.recv(1 << 16)):
            self.opened += self.end.open(piece)
            self.sock.sendall(self.end.answer())
        data, self.opened = self.opened[:count], self.opened[count:]
        return data

    def is_at_the_end(self) -> bool:
        """Read to the end, which is said."""
        return not self.read(1) and self.end.reader.closed


class Asynchronous:
    """An AsyncConnection in the shape of a Connection."""

    def __init__(self, sock: socket.socket, offer: Offer) -> None:
        self._runner = asyncio.Runner()
        self._connection = AsyncConnection(sock, offer)
        self.timeout: float | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        return self._waiting(found) if asyncio.iscoroutinefunction(found) else found

    def _waiting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def limited(*arguments: Any) -> Any:
            async with asyncio.timeout(self.timeout or TIMEOUT):
                return await call(*arguments)

        return lambda *arguments: self._runner.run(limited(*arguments))

    def stop(self) -> None:
        self._connection.abort()
        self._runner.close()


@dataclass
class Both:
    """A connection, and its client."""

    ours: Any
    client: Client


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        client = socket.create_connection(door.getsockname())
        accepted, _ = door.accept()
    accepted.setblocking(False)
    return client, accepted


def at_home(sock: socket.socket, session: Session, home: str) -> Session:
    """Move a session where it is to be, as a relay does."""
    if home == "user":
        return session
    kernel.enable(sock)
    rekey = support().rekey
    writer = kernel.KernelWriter.move(sock, RecordWriter(session), rekey=rekey)
    reader = RecordReader(session)
    if home == "kernel-tx":
        return export(reader, writer, Peer())
    return export(kernel.KernelReader.move(sock, reader, rekey=rekey), writer, Peer())


@contextmanager
def connected(
    api: str,
    home: str,
    suite: Suite = AES128,
    *,
    facts: Facts | None = None,
    data: bytes = b"",
    change: Callable[[Session], Session] = lambda session: session,
) -> Iterator[Both]:
    """Connect; `data` and `change` are what came with the session."""
    server, other = sessions(suite)
    far, near = pair()
    with far:
        session = at_home(near, change(replace(server, peer=Peer())), home)
        offer = decode(bytes(encode(Offer(facts or Facts(), session, data))))
        ours: Any = (Connection if api == "blocking" else Asynchronous)(near, offer)
        ours.timeout = TIMEOUT
        try:
            yield Both(ours, Client(far, other))
        finally:
            (ours.abort if api == "blocking" else ours.stop)()
