"""Where targets are: literal addresses and paths at once, names by the system's resolver.

The resolver blocks, so it has two threads, started for the first name. Answers are kept for ten
seconds; while a name is looked up, all who ask for it wait for the same answer.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, zip_longest
from typing import Any, Final, TypeAlias

from handfast.config import Address, TcpAddress, UnixAddress
from handfast.errors import BackendError
from handfast.transport.loop import Loop

Endpoint: TypeAlias = tuple[int, Any]
"""An address family and the address as `connect` takes it."""

Answer: TypeAlias = list[Endpoint] | BackendError
Callback: TypeAlias = Callable[[Answer], None]

CACHE_SECONDS: Final = 10.0
_THREADS: Final = 2


def interleave(endpoints: list[Endpoint]) -> list[Endpoint]:
    """Order by alternating families, beginning with that of the first (RFC 8305, section 4)."""
    if not endpoints:
        return []
    first = [each for each in endpoints if each[0] == endpoints[0][0]]
    others = [each for each in endpoints if each[0] != endpoints[0][0]]
    return [each for each in chain(*zip_longest(first, others)) if each is not None]


class Resolver:
    """The resolver of one process. Its callbacks come from the event loop."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._known: dict[TcpAddress, tuple[float, list[Endpoint]]] = {}
        self._waiting: dict[TcpAddress, list[Callback]] = {}
        self._answers: deque[tuple[TcpAddress, Answer]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        self._wake = -1

    def resolve(self, target: Address, callback: Callback) -> None:
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
            self._pool().submit(self._query, target)

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "resolver")
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._loop.add_reader(self._wake, self._deliver)
        return self._threads

    def _query(self, target: TcpAddress) -> None:
        """Run in a thread: ask, leave the answer, and wake the event loop."""
        answer: Answer
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            answer = interleave([(family, address) for family, _, _, _, address in found])
        except (OSError, UnicodeError) as error:
            description = getattr(error, "strerror", None) or str(error)
            answer = BackendError(f"cannot resolve {target.host}", description=description)
        self._answers.append((target, answer))
        os.eventfd_write(self._wake, 1)

    def _deliver(self) -> None:
        os.eventfd_read(self._wake)
        while self._answers:
            target, answer = self._answers.popleft()
            if not isinstance(answer, BackendError):
                self._known[target] = (self._loop.time() + CACHE_SECONDS, answer)
            for callback in self._waiting.pop(target):
                callback(answer)


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
