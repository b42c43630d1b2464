"""Answers to `status` that wait for the reports of all workers, or for a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from handfast.process.child import Child
from handfast.process.commands import Answer, Status
from handfast.process.control import Pending
from handfast.process.messages import Query, send
from handfast.transport.loop import Loop

_SECONDS: Final = 1.0


class Gathering(msgspec.Struct):
    """One answer: who is to have it, who has not reported yet, and what the others reported."""

    client: Pending
    waiting: set[Child]
    reports: dict[Child, dict[str, int]]


class Gatherings:
    """The answers that wait. `describe` makes a status of the reports."""

    def __init__(
        self, loop: Loop, describe: Callable[[dict[Child, dict[str, int]]], Status]
    ) -> None:
        self._loop = loop
        self._describe = describe
        self._open: dict[int, Gathering] = {}
        self._last = 0

    def start(self, client: Pending, workers: Iterable[Child]) -> None:
        """Ask the workers that are ready."""
        self._last += 1
        query = self._last
        asked = {child for child in workers if child.ready and child.control is not None}
        self._open[query] = Gathering(client, asked, {})
        for child in asked:
            if child.control is not None:
                send(child.control, Query(query))
        self._loop.call_later(_SECONDS, lambda: self._answer(query))
        if not asked:
            self._answer(query)

    def report(self, query: int, child: Child, counters: dict[str, int]) -> None:
        """Take a worker's report; one that comes too late, or twice, counts for nothing."""
        gathering = self._open.get(query)
        if gathering is not None and child in gathering.waiting:
            gathering.reports[child] = counters
            self._arrived(query, gathering, child)

    def lost(self, child: Child) -> None:
        """Wait no more for a worker that has died."""
        for query, gathering in list(self._open.items()):
            if child in gathering.waiting:
                self._arrived(query, gathering, child)

    def _arrived(self, query: int, gathering: Gathering, child: Child) -> None:
        gathering.waiting.discard(child)
        if not gathering.waiting:
            self._answer(query)

    def _answer(self, query: int) -> None:
        gathering = self._open.pop(query, None)
        if gathering is not None:
            gathering.client.answer(Answer(status=self._describe(gathering.reports)))
            gathering.client.close()
