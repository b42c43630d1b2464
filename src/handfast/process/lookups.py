"""Look names up by the system's resolver, which blocks, without ever waiting for it.

One thread for each name that is being looked up, since most of the time there is none, and since
nothing can end a thread that hangs: `getaddrinfo` has no timeout of its own to set. A name that
has no answer after five seconds is reported as failed and no longer counts as one of those that
run; its thread is left to end by itself. Both numbers are bounded, and the other names wait.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from threading import Thread
from typing import Any, Final, TypeAlias

from handfast.errors import BackendError
from handfast.relay.question import MAX_ADDRESSES, Place
from handfast.transport.loop import Loop

LOOKUP_SECONDS: Final = 5.0
MAX_RUNNING: Final = 4
MAX_THREADS: Final = 16
"""Threads in all, of which all but MAX_RUNNING have been given up."""
MAX_NAMES: Final = 256

_TICK: Final = 0.25

Answer: TypeAlias = tuple[Place, ...] | BackendError
Callback: TypeAlias = Callable[[Answer], None]
GetAddrInfo: TypeAlias = Callable[..., list[tuple[Any, ...]]]


class _Lookup:
    """One name, and who waits for it until when."""

    __slots__ = ("given_up", "host", "started", "waiting")

    def __init__(self, host: str) -> None:
        self.host = host
        self.started = 0.0  # 0 is not yet
        self.given_up = False
        self.waiting: list[tuple[float, Callback]] = []


class Lookups:
    """The names that are being looked up, each once. Callbacks come from the event loop."""

    def __init__(self, loop: Loop, getaddrinfo: GetAddrInfo) -> None:
        self._loop = loop
        self._getaddrinfo = getaddrinfo
        self._lookups: dict[str, _Lookup] = {}
        self._queue: deque[_Lookup] = deque()
        self._running = 0
        self._threads = 0
        self._answers: deque[tuple[_Lookup, Answer]] = deque()
        self._ticking = False
        self._wake: Final = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._wake, self._deliver)

    def look_up(self, host: str, callback: Callback) -> None:
        """Give the addresses of a host, the best first, or why there are none, within 5 s.

        All who ask for one host share one query.
        """
        lookup = self._lookups.get(host)
        if lookup is None:
            if len(self._lookups) >= MAX_NAMES:
                callback(BackendError(f"{MAX_NAMES} other names are being looked up"))
                return
            lookup = self._lookups[host] = _Lookup(host)
            self._queue.append(lookup)
        lookup.waiting.append((self._loop.time() + LOOKUP_SECONDS, callback))
        self._start()
        self._tick()

    def close(self) -> None:
        """Drop everything; no callback comes."""
        self._loop.remove_reader(self._wake)
        self._lookups.clear()
        self._queue.clear()

    def _start(self) -> None:
        while self._queue and self._running < MAX_RUNNING and self._threads < MAX_THREADS:
            lookup = self._queue.popleft()
            lookup.started = self._loop.time()
            self._running += 1
            self._threads += 1
            try:
                name = f"lookup {lookup.host}"
                Thread(target=self._query, name=name, args=(lookup,), daemon=True).start()
            except RuntimeError as error:  # no memory, or the user has too many processes
                self._answer(lookup, BackendError("cannot start a thread", description=str(error)))

    def _query(self, lookup: _Lookup) -> None:
        """Run in a thread: ask, leave the answer, and wake the event loop."""
        self._answer(lookup, _ask(self._getaddrinfo, lookup.host))

    def _answer(self, lookup: _Lookup, answer: Answer) -> None:
        self._answers.append((lookup, answer))
        os.eventfd_write(self._wake, 1)

    def _deliver(self) -> None:
        os.eventfd_read(self._wake)
        while self._answers:
            lookup, answer = self._answers.popleft()
            self._threads -= 1
            if not lookup.given_up:
                self._running -= 1
            self._lookups.pop(lookup.host, None)
            for _, callback in lookup.waiting:
                callback(answer)
        self._start()

    def _tick(self) -> None:
        """Look at the clock from time to time while there is a lookup."""
        if self._lookups and not self._ticking:
            self._ticking = True
            self._loop.call_later(_TICK, self._ticked)

    def _ticked(self) -> None:
        self._ticking = False
        now = self._loop.time()
        for lookup in list(self._lookups.values()):
            self._check(lookup, now)
        self._start()
        self._tick()

    def _check(self, lookup: _Lookup, now: float) -> None:
        late = [callback for until, callback in lookup.waiting if until <= now]
        lookup.waiting = lookup.waiting[len(late) :]
        if lookup.started and not lookup.given_up and now - lookup.started >= LOOKUP_SECONDS:
            lookup.given_up = True
            self._running -= 1
        elif not lookup.started and not lookup.waiting:
            self._queue.remove(lookup)
            del self._lookups[lookup.host]
        error = BackendError(
            f"cannot resolve {lookup.host}", description=f"no answer in {LOOKUP_SECONDS:g} s"
        )
        for callback in late:
            callback(error)


def _ask(getaddrinfo: GetAddrInfo, host: str) -> Answer:
    try:
        found = getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        description = getattr(error, "strerror", None) or str(error)
        return BackendError(f"cannot resolve {host}", description=description)
    # An address is (IP, port), or (IP, port, flow, scope) for IPv6.
    places = dict.fromkeys((each[4][0], (*each[4], 0, 0)[3]) for each in found)
    return tuple(places)[:MAX_ADDRESSES] or BackendError(f"{host} has no address")
