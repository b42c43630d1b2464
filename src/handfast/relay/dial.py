"""Connect to a target: resolution, and racing of its addresses (RFC 8305, Happy Eyeballs).

The addresses are tried in the resolver's order with the families interleaved. The next one starts
when the one before has failed, or after 250 ms without an answer; the first that connects wins.
How long it may take in all is the caller's business, who cancels it.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Callable
from itertools import chain, zip_longest
from typing import Any, Final, TypeAlias

from handfast.config import TcpAddress, UnixAddress
from handfast.errors import BackendError

Endpoint: TypeAlias = tuple[int, Any]
"""An address family and the address as `connect` takes it."""

ATTEMPT_DELAY: Final = 0.25
CACHE_SECONDS: Final = 10.0


def interleave(endpoints: list[Endpoint]) -> list[Endpoint]:
    """Order by alternating families, beginning with that of the first (RFC 8305, section 4)."""
    if not endpoints:
        return []
    first = [each for each in endpoints if each[0] == endpoints[0][0]]
    others = [each for each in endpoints if each[0] != endpoints[0][0]]
    return [each for each in chain(*zip_longest(first, others)) if each is not None]


class Resolver:
    """Finds the endpoints of targets. Answers are kept for ten seconds, one query at a time each.

    Literal addresses and Unix paths are answered at once. `callback` gets the endpoints, or a
    BackendError, from the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._known: dict[TcpAddress, tuple[float, list[Endpoint]]] = {}
        self._waiting: dict[TcpAddress, list[Callable[[list[Endpoint] | BackendError], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def resolve(
        self,
        target: TcpAddress | UnixAddress,
        callback: Callable[[list[Endpoint] | BackendError], None],
    ) -> None:
        """Look a target up and call back, perhaps before this returns."""
        if isinstance(target, UnixAddress):
            callback([(socket.AF_UNIX, target.path)])
            return
        until, endpoints = self._known.get(target, (0.0, []))
        if self._loop.time() < until:
            callback(endpoints)
        elif literal := _literal(target):
            self._known[target] = (float("inf"), [literal])
            callback([literal])
        elif target in self._waiting:
            self._waiting[target].append(callback)
        else:
            self._waiting[target] = [callback]
            task = self._loop.create_task(self._query(target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _query(self, target: TcpAddress) -> None:
        answer: list[Endpoint] | BackendError
        try:
            found = await self._loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            answer = interleave([(family, address) for family, _, _, _, address in found])
            self._known[target] = (self._loop.time() + CACHE_SECONDS, answer)
        except OSError as error:
            answer = BackendError(
                f"cannot resolve {target.host}", description=error.strerror or str(error)
            )
        for callback in self._waiting.pop(target):
            callback(answer)


def _is_connected(sock: socket.socket) -> bool:
    """Tell whether a connect that went to the background is done already.

    On the loopback interface it nearly always is, and asking costs one call instead of a turn of
    the event loop with eight.
    """
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _literal(target: TcpAddress) -> Endpoint | None:
    try:
        address = ipaddress.ip_address(target.host)
    except ValueError:
        return None
    if address.version == 4:
        return socket.AF_INET, (target.host, target.port)
    if "%" in target.host:
        return None  # a scoped address needs the resolver, for the number of its interface
    return socket.AF_INET6, (target.host, target.port, 0, 0)


class Dial:
    """One attempt to connect to any of the endpoints.

    Ends with exactly one call, of `connected` with a non-blocking socket that the callee owns and
    the endpoint's address, or of `failed`; with none after `cancel`.
    """

    __slots__ = ("_attempts", "_connected", "_endpoints", "_error", "_failed", "_loop", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        endpoints: list[Endpoint],
        connected: Callable[[socket.socket, Any], None],
        failed: Callable[[BackendError], None],
    ) -> None:
        self._loop = loop
        self._endpoints = endpoints[::-1]
        self._connected = connected
        self._failed = failed
        self._attempts: dict[int, tuple[socket.socket, Any]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._error = BackendError("the target has no address")

    def start(self) -> None:
        """Start the next attempt, and the clock for the one behind it."""
        self._stop_timer()
        while self._endpoints:
            family, address = self._endpoints.pop()
            try:
                self._attempt(family, address)
            except OSError as error:
                self._note(address, error)
                continue
            if self._endpoints and self._attempts:
                self._timer = self._loop.call_later(ATTEMPT_DELAY, self.start)
            return
        if not self._attempts:
            self._failed(self._error)

    def _attempt(self, family: int, address: Any) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
        except BlockingIOError as error:
            if error.errno != errno.EINPROGRESS:  # EAGAIN: a Unix socket's backlog is full
                sock.close()
                raise
            if not _is_connected(sock):
                descriptor = sock.fileno()
                self._attempts[descriptor] = (sock, address)
                self._loop.add_writer(descriptor, self._writable, descriptor)
                return
        except OSError:
            sock.close()
            raise
        self._win(sock, address)

    def _writable(self, descriptor: int) -> None:
        sock, address = self._attempts.pop(descriptor)
        self._loop.remove_writer(descriptor)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            sock.close()
            self._note(address, OSError(code, os.strerror(code)))
            self.start()
        else:
            self._win(sock, address)

    def _win(self, sock: socket.socket, address: Any) -> None:
        self.cancel()
        self._connected(sock, address)

    def _note(self, address: Any, error: OSError) -> None:
        where = address if isinstance(address, str) else f"{address[0]} port {address[1]}"
        self._error = BackendError(
            f"cannot connect to {where}", description=error.strerror or str(error)
        )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def cancel(self) -> None:
        """Drop every attempt."""
        self._stop_timer()
        self._endpoints = []
        for descriptor, (sock, _) in self._attempts.items():
            self._loop.remove_writer(descriptor)
            sock.close()
        self._attempts.clear()
