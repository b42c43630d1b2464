"""An event loop whose clock the test sets, and whose descriptors are real."""

from __future__ import annotations

import time
from collections.abc import Callable

from handfast.transport.loop import Callback, Loop, Timer

PATIENCE = 20.0


class Clock(Loop):
    """`advance` lets time pass at once; `until` waits, in real time, for what descriptors bring."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._waiting: list[tuple[float, Timer]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callback) -> Timer:
        timer = Timer(callback)
        self._waiting.append((when, timer))
        return timer

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        return self.call_at(self.now + seconds, callback)

    def turn(self) -> None:
        """Call back what is ready, waiting a moment for it."""
        super().call_at(time.monotonic() + 0.01, self.stop)
        self.run()

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            self.turn()

    def advance(self, seconds: float) -> None:
        """Let time pass, and run what becomes due, each timer at its time."""
        end = self.now + seconds
        while due := [each for each in self._waiting if each[0] <= end]:
            first = min(due, key=lambda each: each[0])
            self._waiting.remove(first)
            self.now = max(self.now, first[0])
            if first[1].callback is not None:
                first[1].callback()
        self.now = end
