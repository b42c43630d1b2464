"""Deadlines of many connections on one timer of the event loop.

Deadlines are rounded up to a tenth of a second and kept in one set per tenth, so that setting,
moving and dropping one is a dictionary operation, and the loop has one timer for all of them.
"""

from __future__ import annotations

import heapq
from collections import deque
from math import ceil
from typing import Final, Protocol

from handfast.transport.loop import Loop, Timer

_PER_SECOND: Final = 10


class Expiring(Protocol):
    """What has a deadline. `bucket` belongs to Deadlines; 0 means that none is set."""

    bucket: int

    def expired(self, now: float) -> None:
        """Act on the deadline; it is not set any more when this is called."""


class Deadlines:
    """The deadlines of one process. Times are those of the event loop's clock, in seconds."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._buckets: dict[int, set[Expiring]] = {}
        self._order: list[int] = []
        self._due: deque[tuple[int, Expiring]] = deque()
        self._timer: Timer | None = None

    def __len__(self) -> int:
        """Count the items that have a deadline."""
        return sum(map(len, self._buckets.values()))

    def set(self, item: Expiring, when: float) -> None:
        """Set or move the deadline of an item."""
        bucket = max(1, ceil(when * _PER_SECOND))
        if item.bucket == bucket:
            return
        if item.bucket:
            self.drop(item)
        item.bucket = bucket
        members = self._buckets.get(bucket)
        if members is None:
            members = self._buckets[bucket] = set()
            heapq.heappush(self._order, bucket)
            if self._order[0] == bucket:
                self._arm()
        members.add(item)

    def drop(self, item: Expiring) -> None:
        """Forget the deadline of an item, if it has one."""
        members = self._buckets.get(item.bucket)
        if members is not None:
            members.discard(item)
        item.bucket = 0

    def close(self) -> None:
        """Forget all deadlines."""
        if self._timer is not None:
            self._timer.cancel()
        self._buckets.clear()
        self._order.clear()
        self._due.clear()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due:
            self._timer = self._loop.call_at(self._loop.time(), self._tick)
        elif self._order:
            self._timer = self._loop.call_at(self._order[0] / _PER_SECOND, self._tick)

    def _tick(self) -> None:
        """Expire what is due now. What is set meanwhile, even in the past, is for another turn."""
        now = self._loop.time()
        due = now * _PER_SECOND + 0.05  # the loop's timers have a resolution of a millisecond
        while self._order and self._order[0] <= due:
            bucket = heapq.heappop(self._order)
            self._due += [(bucket, item) for item in self._buckets.pop(bucket)]
        try:
            while self._due:
                bucket, item = self._due.popleft()
                if item.bucket == bucket:  # else it was dropped or moved by one before it
                    self.drop(item)
                    item.expired(now)
        finally:
            self._arm()
