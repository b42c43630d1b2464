"""The supervisor's event loop: descriptors to read, and timers; nothing that a fork would harm."""

from __future__ import annotations

import heapq
import selectors
import socket
import time
from collections.abc import Callable
from itertools import count
from typing import Final, TypeAlias

Callback: TypeAlias = Callable[[], None]


class Loop:
    """Calls back when a descriptor is readable or a time has come. One thread, no nesting."""

    def __init__(self) -> None:
        self._selector: Final = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callback]] = []
        self._order: Final = count()
        self._running = True

    def watch(self, source: int | socket.socket, callback: Callback) -> None:
        """Call back whenever the source is readable."""
        self._selector.register(source, selectors.EVENT_READ, callback)

    def forget(self, source: int | socket.socket) -> None:
        """Call back no more; it is no error when nobody watched."""
        try:
            self._selector.unregister(source)
        except (KeyError, ValueError):
            pass  # never watched, or closed already: there is nothing to undo

    def after(self, seconds: float, callback: Callback) -> None:
        """Call back once, so many seconds from now."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), callback))

    def stop(self) -> None:
        """Let `run` return after the callback that is running."""
        self._running = False

    def run(self) -> None:
        """Run until `stop`."""
        while self._running:
            ready = self._selector.select(self._wait())
            for key, _ in ready:
                self._call(key)
            self._call_timers()

    def _call(self, key: selectors.SelectorKey) -> None:
        # An earlier callback of this round may have closed it, or stopped the loop.
        if self._running and key.fd in self._selector.get_map():
            key.data()

    def _call_timers(self) -> None:
        now = time.monotonic()
        while self._running and self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def _wait(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def close(self) -> None:
        """Close the selector."""
        self._selector.close()
