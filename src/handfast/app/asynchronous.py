"""A client's connection, for a program with asyncio (uvloop does as well)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from handfast.app.connection import LINGER_SECONDS, Buffer
from handfast.app.errors import SessionError
from handfast.app.intake import Intake, Taken
from handfast.app.link import Link

if TYPE_CHECKING:
    import socket

    from handfast.app.listener import Listener
    from handfast.app.peer import Peer
    from handfast.handover.application import Offer

_Key: TypeAlias = tuple[int, bool]


class _Readiness:
    """Waits for descriptors, and can be woken: what waits must not outlive a closed descriptor."""

    def __init__(self) -> None:
        self._waiting: dict[_Key, asyncio.Future[None]] = {}

    async def wait(self, descriptor: int, *, write: bool = False) -> None:
        """Wait until a descriptor is ready, or for `wake`."""
        key = (descriptor, write)
        if key in self._waiting:
            raise RuntimeError("another task waits for the same already")
        loop = asyncio.get_running_loop()
        future = self._waiting[key] = loop.create_future()
        try:
            (loop.add_writer if write else loop.add_reader)(descriptor, self._forget, key)
            await future
        finally:
            if self._waiting.get(key) is future:
                self._forget(key)

    def _forget(self, key: _Key) -> None:
        descriptor, write = key
        future = self._waiting.pop(key)
        loop = future.get_loop()
        (loop.remove_writer if write else loop.remove_reader)(descriptor)
        if not future.done():
            future.set_result(None)

    def wake(self) -> None:
        """Let everybody go on who waits."""
        for key in list(self._waiting):
            self._forget(key)


class AsyncConnection:
    """A client's connection, as `Connection` is. One task may read while others write.

    Time limits are for `asyncio.timeout`: a call that is cancelled has lost nothing, but that of a
    `write` nobody knows how much was written.
    """

    def __init__(self, sock: socket.socket, offer: Offer) -> None:
        self._link: Final = Link(sock, offer)
        self._ready: Final = _Readiness()
        self._turn: Final = asyncio.Lock()

    def __repr__(self) -> str:
        peer = self._link.peer
        return f"AsyncConnection({peer.address} port {peer.port}, {self._link.home})"

    @property
    def peer(self) -> Peer:
        """Who the client is."""
        return self._link.peer

    @property
    def home(self) -> str:
        """Where the session is, as `Connection.home` says."""
        return self._link.home

    @property
    def closed(self) -> bool:
        """Whether the connection was closed or aborted."""
        return self._link.closed

    def fileno(self) -> int:
        """Give the socket's descriptor, for who wants to know; not for reading or writing."""
        return self._link.sock.fileno()

    async def read(self, limit: int = 1 << 16) -> bytes:
        """Wait for data, and give up to `limit` bytes of it; b"" when the client has said its end.

        Raises as `Connection.read` does.
        """
        while (data := self._link.read(limit)) is None:
            await self._ready.wait(self._link.waits_on())
        return data

    async def write(self, data: Buffer) -> None:
        """Write all of the data, as far as the kernel; raises SessionError and OSError."""
        left = memoryview(data).cast("B")
        async with self._turn:
            while True:
                left = left[self._link.write(left) :]
                if not left and self._link.flush():
                    return
                await self._writable()

    async def finish(self) -> None:
        """Say that nothing more comes from here, and go on reading."""
        async with self._turn:
            while not self._link.finish():
                await self._writable()

    async def close(self) -> None:
        """Say the end, if it was not said; wait a second at most for the client's, and close."""
        if self._link.closed:
            return
        self._link.leaving = True
        self._ready.wake()
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                with contextlib.suppress(SessionError):
                    await self.finish()
                while not self._link.discard():
                    await self._ready.wait(self._link.waits_on())
        except (OSError, RuntimeError):
            pass  # broken, or too late (TimeoutError), or somebody reads: there is nobody to tell
        finally:
            self.abort()

    def abort(self) -> None:
        """Close at once: with RST, unless the end was said."""
        self._ready.wake()
        self._link.close()

    async def _writable(self) -> None:
        await self._ready.wait(self.fileno(), write=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; after an exception, so that the client does not take it for the end."""
        if kind is None or issubclass(kind, SessionError):
            await self.close()
        else:
            self.abort()


async def accept(intake: Intake) -> Taken | None:
    """Wait for a session; None when the intake is closed meanwhile."""
    ready = _Readiness()
    intake.on_close = ready.wake
    while not intake.closed:
        if (taken := intake.turn()) is not None:
            return taken
        left = intake.next_deadline() - time.monotonic()
        try:
            async with asyncio.timeout(None if left == math.inf else max(0.001, left)):
                await ready.wait(intake.fileno())
        except TimeoutError:
            pass  # something is to be done at this time
    return None


async def connections(listener: Listener) -> AsyncIterator[AsyncConnection]:
    """Give connections until the listener is closed."""
    while not listener.closed:
        taken = await accept(listener.intake)
        if taken is not None:
            yield AsyncConnection(*taken)
