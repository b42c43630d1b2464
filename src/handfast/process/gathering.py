"""Answers to `status` that wait for the reports of all workers, or for a second.

Here is also what is kept of reports: of each worker the last, for when it does not answer in time,
and the sum of those that have ended. So a total never goes down, which a reader of the metrics
would take for a restart.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from handfast.observe.counters import Counts, Histogram, total
from handfast.observe.status import (
    FailureCount,
    HandshakeCount,
    ListenerStatus,
    ProcessGauge,
    ProcessStatus,
    Status,
)
from handfast.process.child import Child
from handfast.process.commands import Answer
from handfast.process.memory import memory_of
from handfast.process.messages import Query, StatusReply, send
from handfast.process.sealed import seal
from handfast.transport.loop import Loop

_SECONDS: Final = 1.0
_GOES_DOWN: Final = frozenset({"active"})


class Client(Protocol):
    """Who waits for an answer."""

    def answer(self, answer: Answer) -> None:
        """Take the answer."""

    def close(self) -> None:
        """Nothing comes after the answer."""


class MonitorClient(msgspec.Struct, eq=False):
    """The monitor, which has sent StatusRequest `number` over its control socket."""

    control: socket.socket
    number: int
    answered: bool = False

    def answer(self, answer: Answer) -> None:
        """Send the status in a memfd: with hundreds of certificates it is larger than a packet."""
        self.answered = True
        descriptor = seal("status", msgspec.json.encode(answer.status))
        try:
            if self.control.fileno() >= 0:  # else it died while the workers were asked
                send(self.control, StatusReply(self.number), descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Leave the control socket open: it is for more than one answer."""


class Gathering(msgspec.Struct):
    """One answer: who is to have it, and who has not reported yet."""

    query: int
    clients: list[Client]
    waiting: set[Child]


class Gatherings:
    """The answers that wait, and what the workers have counted.

    One gathering at a time; who asks meanwhile shares the next. And a worker is asked again only
    when it has answered: however many ask, no worker's queue is filled with questions.

    `describe` tells what the supervisor knows by itself; it gets the plain counts of each worker.
    `ended` are the counts of those that have ended, those of the program before included.
    """

    def __init__(
        self,
        loop: Loop,
        describe: Callable[[dict[Child, dict[str, int]]], Status],
        ended: Counts | None = None,
    ) -> None:
        self._loop = loop
        self._describe = describe
        self._open: Gathering | None = None
        self._next: list[Client] = []
        self._workers: tuple[Child, ...] = ()
        self._owing: set[Child] = set()  # those that have not answered the last question
        self._monitor: MonitorClient | None = None
        self._number = 0
        self._last: dict[Child, Counts] = {}
        self.ended = ended or Counts()

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._open is not None

    def start(self, client: Client, workers: Iterable[Child]) -> None:
        """Ask the workers that are ready."""
        self._next.append(client)
        self._workers = tuple(workers)
        if self._open is None:
            self._begin()

    def start_for_monitor(
        self, control: socket.socket, number: int, workers: Iterable[Child]
    ) -> None:
        """Ask for the monitor; one that asks again before the answer gets that, by the new number.

        Our monitor does not. One that was taken over may ask as fast as it can.
        """
        monitor = self._monitor
        if monitor is not None and not monitor.answered and monitor.control is control:
            monitor.number = number
        else:
            self._monitor = MonitorClient(control, number)
            self.start(self._monitor, workers)

    def _begin(self) -> None:
        self._number += 1
        query = self._number
        asked = set()
        for child in self._workers:
            if child.ready and child.control is not None and child not in self._owing:
                asked.add(child)
                send(child.control, Query(query))
        self._owing |= asked
        self._open = Gathering(query, self._next, asked)
        self._next = []
        self._loop.call_later(_SECONDS, lambda: self._answer(query))
        if not asked:
            self._answer(query)

    def report(self, query: int, child: Child, counts: Counts) -> None:
        """Take a worker's report; one that nobody waits for is good for the next status."""
        self._last[child] = counts
        self._owing.discard(child)
        self._arrived(query, child)

    def lost(self, child: Child) -> None:
        """Wait no more for a worker that has ended, and keep what it has counted."""
        counts = self._last.pop(child, None)
        if counts is not None:
            self.ended = total((self.ended, _lasting(counts)))
        self._owing.discard(child)
        self._arrived(self._number, child)

    def _arrived(self, query: int, child: Child) -> None:
        gathering = self._open
        if gathering is not None and gathering.query == query and child in gathering.waiting:
            gathering.waiting.discard(child)
            if not gathering.waiting:
                self._answer(query)

    def _answer(self, query: int) -> None:
        gathering = self._open
        if gathering is None or gathering.query != query:
            return
        self._open = None
        if self._next:
            self._begin()
        answer = Answer(status=self.status())
        for client in gathering.clients:
            client.answer(answer)
            client.close()

    def stalls(self, children: Iterable[Child]) -> Histogram:
        """Give how long connections stood still that came to these workers, by what they said."""
        found = (self._last[each] for each in children if each in self._last)
        return total(found).stall_seconds

    def status(self) -> Status:
        """Give the status by the last reports."""
        plain = {child: counts.numbers for child, counts in self._last.items()}
        status = self._describe(plain)
        counts = total((self.ended, *self._last.values()))
        return replace(
            status,
            totals=counts.numbers,
            listeners=tuple(_listener(each, counts) for each in status.listeners),
            processes=tuple(_process(each) for each in status.processes),
            handshakes=tuple(
                HandshakeCount(*key, count) for key, count in sorted(counts.granted.items())
            ),
            failures=tuple(
                FailureCount(*key, count) for key, count in sorted(counts.failures.items())
            ),
            refused=counts.refused,
            handshake_seconds=counts.handshake_seconds,
            connect_seconds=counts.connect_seconds,
            stall_seconds=counts.stall_seconds,
            gauges=tuple(
                ProcessGauge(child.worker_id, gauge.name, dict(gauge.labels), gauge.value)
                for child, each in self._last.items()
                for gauge in each.gauges
            ),
        )


def _lasting(counts: Counts) -> Counts:
    numbers = {name: each for name, each in counts.numbers.items() if name not in _GOES_DOWN}
    return replace(counts, numbers=numbers)


def _listener(listener: ListenerStatus, counts: Counts) -> ListenerStatus:
    return replace(listener, accepted=counts.listeners.get(listener.number, 0))


def _process(process: ProcessStatus) -> ProcessStatus:
    if not process.pid:
        return process
    memory = memory_of(process.pid)
    return replace(process, resident=memory.resident, proportional=memory.proportional)
