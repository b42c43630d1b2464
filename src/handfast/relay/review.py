"""The check of all live connections against a new generation.

It is done in slices, with a turn of the event loop between two of them, so that traffic goes on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from handfast.policy.clients import Decision

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
    """One check. Those that are no longer allowed are ended."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._generation = relay.generation
        self._left = list(relay.connections)
        self._decisions: dict[tuple[int, tuple[bytes, ...]], Decision] = {}
        self._timer = relay.loop.call_later(0, self._slice)

    @property
    def done(self) -> bool:
        """Tell whether every connection was checked."""
        return not self._left

    def cancel(self) -> None:
        """Check no more."""
        self._timer.cancel()

    def _slice(self) -> None:
        end = time.monotonic() + SLICE_SECONDS
        for _ in range(SLICE):
            if not self._left:
                self._decisions.clear()
                return
            self._check(self._left.pop())
            if time.monotonic() > end:
                break
        self._timer = self._relay.loop.call_later(PAUSE, self._slice)

    def _check(self, connection: Connection) -> None:
        if connection not in self._relay.connections:
            return  # it has ended meanwhile
        if connection.listener not in self._generation.listeners:
            connection.end("its listener is no longer configured")
        elif (
            not connection.is_passed_through and not (decision := self._decide(connection)).allowed
        ):
            connection.deny(decision)
        else:
            connection.watch()  # the timeouts may be others

    def _decide(self, connection: Connection) -> Decision:
        """Decide once for all connections of a client."""
        key = connection.listener, connection.certificates
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decisions[key] = self._generation.decide(*key)
        return decision
