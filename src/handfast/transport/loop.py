"""The event loop of all of handfast's processes: epoll, timers, and nothing else.

It is not asyncio, for three reasons that were measured or met. Watching a descriptor is one system
call, where uvloop makes five and its removal three: with it, a new connection cost 5 to 8 percent
more CPU and an idle one 5.0 KB instead of 3.9. It has nothing in it that a forked child would have
to undo. And it needs no io_uring, which a system-call filter would have to let through.

One thread, level-triggered. A callback that is not removed is called again while its descriptor is
ready; for one whose readiness cannot be believed, it is called when something changes
(`watch_edges`). Times are seconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import heapq
import select
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Final, TypeAlias

Callback: TypeAlias = Callable[[], object]

_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT
_EDGES: Final = select.EPOLLET
MOST_EVENTS: Final = 64
"""Descriptors of a turn at most; what is put off to the next one must not have to wait for long."""
_TIMER_ROUNDING: Final = 0.001  # epoll_wait counts milliseconds


class Timer:
    """A callback that waits for its time."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callback | None) -> None:
        self.callback = callback

    def cancel(self) -> None:
        """Do not call back."""
        self.callback = None


class Loop:
    """Calls back when a descriptor is ready or a time has come.

    `on_error` gets what a callback raises; without it, `run` raises it.
    """

    def __init__(self, on_error: Callable[[Exception], None] | None = None) -> None:
        self.on_error = on_error
        self._epoll: Final = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._soon: deque[Callback] = deque()
        self._order: Final = count()
        self._gone: set[int] = set()
        self._edges: set[int] = set()
        self._now = time.monotonic()
        self._running = True

    def time(self) -> float:
        """Give the time at which this turn of the loop began."""
        return self._now

    def add_reader(self, descriptor: int, callback: Callback) -> None:
        """Call back while the descriptor is readable, at its end, or in error."""
        if descriptor not in self._readers:
            if descriptor in self._writers:
                self._modify(descriptor, _READ | _WRITE)
            else:
                self._epoll.register(descriptor, _READ)
        self._readers[descriptor] = callback

    def add_writer(self, descriptor: int, callback: Callback) -> None:
        """Call back while the descriptor is writable or in error."""
        if descriptor not in self._writers:
            if descriptor in self._readers:
                self._modify(descriptor, _READ | _WRITE)
            else:
                self._epoll.register(descriptor, _WRITE)
        self._writers[descriptor] = callback

    def remove_reader(self, descriptor: int) -> None:
        """Call the reader back no more; nothing happens when there is none."""
        if self._readers.pop(descriptor, None) is not None:
            self._unwatch(descriptor, _WRITE, other=descriptor in self._writers)

    def remove_writer(self, descriptor: int) -> None:
        """Call the writer back no more; nothing happens when there is none."""
        if self._writers.pop(descriptor, None) is not None:
            self._unwatch(descriptor, _READ, other=descriptor in self._readers)

    def _unwatch(self, descriptor: int, rest: int, *, other: bool) -> None:
        if other:
            self._modify(descriptor, rest)
        else:
            # Its number may be used again before this turn's events are through.
            self._gone.add(descriptor)
            self._edges.discard(descriptor)
            self._epoll.unregister(descriptor)

    def _modify(self, descriptor: int, mask: int) -> None:
        self._epoll.modify(descriptor, mask | _EDGES if descriptor in self._edges else mask)

    def watch_edges(self, descriptor: int) -> None:
        """Call back for a descriptor when something changes, and not as long as it is ready.

        It has to be read until there is nothing more. That holds until it has neither a reader nor
        a writer; any change of those calls back once more if it is ready.
        """
        reads, writes = descriptor in self._readers, descriptor in self._writers
        if (reads or writes) and descriptor not in self._edges:
            self._edges.add(descriptor)
            self._modify(descriptor, (_READ if reads else 0) | (_WRITE if writes else 0))

    def watches_edges(self, descriptor: int) -> bool:
        """Tell whether `watch_edges` holds for a descriptor."""
        return descriptor in self._edges

    def call_at(self, when: float, callback: Callback) -> Timer:
        """Call back once, at that time."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call back once, so many seconds from now."""
        return self.call_at(time.monotonic() + seconds, callback)

    def call_soon(self, callback: Callback) -> None:
        """Call back once, at the start of the next turn."""
        self._soon.append(callback)

    def stop(self) -> None:
        """Let `run` return after the callback that is running."""
        self._running = False

    def run(self) -> None:
        """Run until `stop`, even if that came before; it can be run again."""
        while self._running:
            try:
                self._turn()
            except Exception as error:
                if self.on_error is None:
                    raise
                self.on_error(error)
        self._running = True

    def _turn(self) -> None:
        # What these ask for is for the turn after this one: one that asks again and again, as long
        # as its peer sends, must not keep the others waiting.
        for _ in range(len(self._soon)):
            self._soon.popleft()()
            if not self._running:
                return
        gone, readers, writers = self._gone, self._readers, self._writers
        gone.clear()
        events = self._epoll.poll(self._wait(), MOST_EVENTS)
        self._now = time.monotonic()
        for descriptor, mask in events:
            # An error in one callback leaves the others of this turn to the next: epoll tells
            # of them again.
            if mask & ~_WRITE and descriptor not in gone:
                callback = readers.get(descriptor)
                if callback is not None:
                    callback()
            if mask & ~_READ and descriptor not in gone:
                callback = writers.get(descriptor)
                if callback is not None:
                    callback()
            if not self._running:
                return
        self._call_timers()

    def _call_timers(self) -> None:
        timers = self._timers
        while self._running and timers and timers[0][0] <= self._now + _TIMER_ROUNDING:
            callback = heapq.heappop(timers)[2].callback
            if callback is not None:
                callback()

    def _wait(self) -> float:
        """Give the seconds to wait for events; -1 is for ever."""
        if self._soon:
            return 0.0
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1.0

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()
