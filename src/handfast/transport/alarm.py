"""A timer of which there is one at a time, for whoever waits for one thing after the other."""

from __future__ import annotations

from collections.abc import Callable

from handfast.transport.loop import Loop, Timer


class Alarm:
    """Set, it takes the place of what it was set to before."""

    __slots__ = ("_loop", "_timer")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._timer: Timer | None = None

    def set(self, seconds: float, then: Callable[[], None]) -> None:
        """Call `then` in so many seconds, and not what was to be called before."""
        self.stop()
        self._timer = self._loop.call_later(seconds, then)

    def stop(self) -> None:
        """Call nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
