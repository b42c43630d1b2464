"""Evening out the connections of the relays, when it is asked for.

New connections go to the relays in turn, but they end as they like, and after one relay was
replaced it has none. The one that has too many gives to the one that has too few, one pair after
the other, until nobody is more than one connection away from the average.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from handfast.errors import HandfastError
from handfast.observe.status import Status
from handfast.process.child import Child
from handfast.process.messages import GiveAway, send
from handfast.process.relays import Relays
from handfast.transport.alarm import Alarm
from handfast.transport.loop import Loop

SECONDS: Final = 30.0
"""How long one relay may take; it may have to wait for room at the other."""


class Move(msgspec.Struct, frozen=True):
    """So many connections, from one relay to another, by their places."""

    giver: int
    taker: int
    count: int


def moves(counts: Mapping[int, int]) -> list[Move]:
    """Plan the fewest moves after which the counts differ by one at most; keys are places."""
    left = dict(counts)
    average, more = divmod(sum(left.values()), len(left))
    # Those that have most keep one more each, where it cannot be the same for all.
    order = sorted(left, key=lambda place: -left[place])
    goals = {place: average + (rank < more) for rank, place in enumerate(order)}
    planned = []
    takers = deque(place for place in reversed(order) if left[place] < goals[place])
    for giver in order:
        while takers and left[giver] > goals[giver]:
            taker = takers[0]
            count = min(left[giver] - goals[giver], goals[taker] - left[taker])
            planned.append(Move(giver, taker, count))
            left[giver] -= count
            left[taker] += count
            if left[taker] == goals[taker]:
                takers.popleft()
    return planned


class Rebalancing:
    """One round of it. `over` is called once, with how many went or why it came to nothing."""

    def __init__(
        self, relays: Relays, loop: Loop, over: Callable[[int, HandfastError | None], None]
    ) -> None:
        self._relays = relays
        self._over = over
        self._alarm = Alarm(loop)
        self._left: deque[Move] = deque()
        self._giver: Child | None = None
        self._count = 0

    def begin(self, status: Status) -> None:
        """Begin, by what the relays have counted."""
        active = {
            place: each.counters.get("active", 0)
            for place, child in enumerate(self._relays.children)
            for each in status.processes
            if each.current and child.ready and each.name == child.worker_id
        }
        self._left = deque(moves(active)) if active else deque()
        self._next()

    def _next(self) -> None:
        self._giver = None
        if not self._left:
            self._alarm.stop()
            self._over(self._count, None)
            return
        move = self._left.popleft()
        giver = self._relays.children[move.giver]
        channel = self._relays.senders[move.taker]
        if giver.control is None or not send(giver.control, GiveAway(move.count), channel.fileno()):
            self._next()  # it has just died, and has nothing to give
            return
        self._giver = giver
        self._alarm.set(SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        giver, self._giver = self._giver, None
        name = giver.name if giver else "a relay"
        if giver is not None and giver.control is not None:  # it is to give no more
            send(giver.control, GiveAway(0), self._relays.senders[giver.number - 1].fileno())
        self._over(self._count, HandfastError(f"{name} has not given its share in {SECONDS:g} s"))

    def given(self, child: Child, count: int) -> None:
        """Take note of what a relay has given away."""
        if child is self._giver:
            self._count += count
            self._next()

    def lost(self, child: Child) -> None:
        """Take note of the death of a process."""
        if child is self._giver:
            self._next()
