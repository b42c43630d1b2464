"""The check of all live connections against a new generation.

It is done in slices, with a turn of the event loop between two of them, so that traffic goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from handfast.policy.clients import Decision
from handfast.transport.loop import Timer

if TYPE_CHECKING:
    from handfast.relay.connection import Connection
    from handfast.relay.relay import Relay

SLICE: Final = 200
"""Connections of one slice at most."""
SLICE_SECONDS: Final = 0.005
"""What a slice takes at most, but for its last connection: deciding may cost a signature."""
PAUSE: Final = 0.001
"""Seconds between two slices: the resolution of the loop's timers, so that it is another turn."""


class Review:
    """One check of these connections. Those that are no longer allowed are ended."""

    def __init__(self, relay: Relay, connections: Iterable[Connection]) -> None:
        self._relay = relay
        self._generation = relay.generation
        # With what `Generation.decide` takes: None for those that the last one has checked.
        self._left: list[tuple[Connection, int | None]] = [(each, None) for each in connections]
        self._decisions: dict[tuple[int, tuple[bytes, ...], int | None], Decision] = {}
        self._timer = Timer(None)
        if self._left:
            self._begin()

    def _begin(self) -> None:
        self._timer = self._relay.loop.call_later(0, self._slice)

    @property
    def done(self) -> bool:
        """Tell whether every connection was checked."""
        return not self._left

    def add(self, connection: Connection, generation: int) -> None:
        """Check one more, which may be here by that generation."""
        self._left.append((connection, generation))
        if len(self._left) == 1:
            self._begin()

    def cancel(self) -> None:
        """Check no more."""
        self._timer.cancel()

    def _slice(self) -> None:
        end = time.monotonic() + SLICE_SECONDS
        for _ in range(SLICE):
            if not self._left:
                self._decisions.clear()
                return
            self._check(*self._left.pop())
            if time.monotonic() > end:
                break
        self._timer = self._relay.loop.call_later(PAUSE, self._slice)

    def _check(self, connection: Connection, generation: int | None) -> None:
        if connection not in self._relay.connections:
            return  # it has ended meanwhile
        if connection.listener not in self._generation.listeners:
            connection.end("its listener is no longer configured")
            return
        if not connection.is_passed_through:
            decision = self._decide(connection, generation)
            if not decision.allowed:
                connection.deny(decision)
                return
        connection.watch()  # the timeouts may be others

    def _decide(self, connection: Connection, generation: int | None) -> Decision:
        """Decide once for all connections of a client."""
        key = connection.listener, connection.certificates, generation
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decisions[key] = self._generation.decide(
                connection.listener, connection.certificates, generation=generation
            )
        return decision
