from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from handfast.observe.counters import Counters, Counts, Gauge, Histogram
from handfast.observe.status import (
    FailureCount,
    HandshakeCount,
    ListenerStatus,
    ProcessStatus,
    Status,
)
from handfast.process.child import Child, Kind
from handfast.process.commands import Answer
from handfast.process.gathering import Gatherings, MonitorClient
from handfast.process.messages import (
    Drain,
    Query,
    StatusReply,
    control_pair,
    receive_in_child,
    send,
)
from handfast.process.sealed import unseal
from handfast.transport.loop import Loop


class Asking:
    """A client that keeps its answer."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self.closed = False

    def answer(self, answer: Answer) -> None:
        assert self.status is None
        self.status = answer.status

    def close(self) -> None:
        self.closed = True


class Office:
    """Two relays, what they hear, and the gatherings that ask them."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.relays = (Child(Kind.RELAY, 1), Child(Kind.RELAY, 2))
        self.ends: list[socket.socket] = []
        self.processes: tuple[ProcessStatus, ...] = ()
        self.seen: dict[Child, dict[str, int]] = {}
        for relay in self.relays:
            relay.control, theirs = control_pair()
            relay.ready = True
            self.ends += [relay.control, theirs]
        self.gatherings = Gatherings(self.loop, self.describe)

    def describe(self, reports: dict[Child, dict[str, int]]) -> Status:
        self.seen = reports
        listeners = (ListenerStatus("a", "b", number=5), ListenerStatus("c", "d", number=6))
        return Status("1", 1, 1.0, "serving", "", listeners, self.processes, {})

    def ask(self) -> Asking:
        client = Asking()
        self.gatherings.start(client, self.relays)
        return client

    def heard(self, number: int) -> int:
        """The number of the query that a relay was asked last."""
        message, _ = receive_in_child(self.ends[2 * number - 1])
        assert isinstance(message, Query)
        return message.query

    def report(self, number: int, counts: Counts) -> None:
        self.gatherings.report(self.heard(number), self.relays[number - 1], counts)


@pytest.fixture
def office() -> Iterator[Office]:
    made = Office()
    yield made
    made.loop.close()
    for end in made.ends:
        end.close()


def counted(bytes_in: int, active: int = 0) -> Counts:
    counters = Counters()
    counters.bytes_in, counters.active = bytes_in, active
    counters.accept(5)
    counters.grant(("TLSv1.3", "suite", "group"), resumed=False, seconds=0.01)
    counters.fail("failed", "timeout")
    counters.refuse("rate")
    counters.gauges = (Gauge("target_up", (), 1.0),)
    return counters.counts()


def status_of(client: Asking) -> Status:
    assert client.status is not None
    assert client.closed
    return client.status


def test_the_answer_waits_for_all_and_has_the_sums(office: Office) -> None:
    client = office.ask()

    office.report(1, counted(10, active=1))
    assert client.status is None
    office.report(2, counted(5, active=2))

    status = status_of(client)
    assert (status.totals["bytes_in"], status.totals["active"]) == (15, 3)
    assert [each.accepted for each in status.listeners] == [2, 0]
    assert status.handshakes == (HandshakeCount("TLSv1.3", "suite", "group", 2),)
    assert status.failures == (FailureCount("failed", "timeout", 2),)
    assert status.refused == {"rate": 2}
    assert [each.process for each in status.gauges] == ["relay-1", "relay-2"]
    assert office.seen[office.relays[1]]["bytes_in"] == 5


def test_a_worker_that_is_late_counts_with_what_it_said_last(office: Office) -> None:
    client = office.ask()
    office.report(1, counted(10))
    office.report(2, counted(5))

    client = office.ask()
    office.report(1, counted(11))
    office.loop.call_later(1.5, office.loop.stop)
    office.loop.run()

    assert status_of(client).totals["bytes_in"] == 16


def test_what_a_dead_worker_has_counted_stays_in_the_totals(office: Office) -> None:
    office.ask()
    office.report(1, counted(10, active=4))
    office.report(2, counted(5, active=2))
    client = office.ask()
    office.report(2, counted(6, active=2))

    office.gatherings.lost(office.relays[0])

    status = status_of(client)
    assert (status.totals["bytes_in"], status.totals["active"]) == (16, 2)
    assert [each.process for each in status.gauges] == ["relay-2"]
    office.gatherings.lost(office.relays[0])
    assert office.gatherings.status().totals["bytes_in"] == 16


def test_a_last_report_that_nobody_asked_for_is_kept(office: Office) -> None:
    office.gatherings.report(0, office.relays[0], counted(10))
    office.gatherings.lost(office.relays[0])

    assert office.gatherings.status().totals["bytes_in"] == 10


def test_stalls_are_those_of_the_workers_that_are_asked_about(office: Office) -> None:
    """An upgrade tells of its own, and not of those before it, whose relays have ended."""
    first, second = office.relays
    for relay, seconds in ((first, 0.004), (second, 0.2)):
        histogram = Histogram()
        histogram.add(seconds)
        office.gatherings.report(0, relay, Counts(stall_seconds=histogram))

    assert office.gatherings.stalls([second]).seconds == pytest.approx(0.2)
    office.gatherings.lost(first)

    assert office.gatherings.stalls(office.relays).seconds == pytest.approx(0.2)
    assert office.gatherings.status().stall_seconds.seconds == pytest.approx(0.204)


def test_without_workers_the_answer_comes_at_once(office: Office) -> None:
    client = Asking()

    office.gatherings.start(client, ())

    assert status_of(client).totals["accepted"] == 0


def test_the_monitor_gets_the_status_however_large_it_is(office: Office) -> None:
    ours, theirs = control_pair()
    many = tuple(ProcessStatus(f"relay-{number}", 0) for number in range(10_000))
    status = msgspec.structs.replace(office.gatherings.status(), processes=many)

    with ours, theirs:
        MonitorClient(ours, 7).answer(Answer(status=status))

        message, (descriptor,) = receive_in_child(theirs)
        assert message == StatusReply(7)
        assert msgspec.json.decode(unseal(descriptor), type=Status) == status
        os.close(descriptor)


def test_a_monitor_that_has_died_is_not_answered(office: Office) -> None:
    ours, theirs = control_pair()
    theirs.close()
    MonitorClient(ours, 7).answer(Answer(status=office.gatherings.status()))
    ours.close()

    MonitorClient(ours, 8).answer(Answer(status=office.gatherings.status()))


def test_the_memory_of_a_living_process_is_told(office: Office) -> None:
    office.processes = (ProcessStatus("me", os.getpid()), ProcessStatus("dead", 0))

    alive, dead = office.gatherings.status().processes

    assert alive.resident >= alive.proportional > 1 << 20
    assert (dead.resident, dead.proportional) == (0, 0)


def test_a_worker_that_does_not_answer_is_not_asked_again_until_it_does(office: Office) -> None:
    silent = office.relays[0]
    office.ask()
    for number in range(500):
        office.gatherings.report(number + 1, office.relays[1], counted(1))
        office.loop.call_later(0, office.loop.stop)
        office.loop.run()
        office.gatherings._answer(office.gatherings._number)
        office.ask()

    assert silent.control is not None
    assert send(silent.control, Drain())
    assert office.heard(1) == 1
    message, _ = receive_in_child(office.ends[1])
    assert message == Drain()
    office.gatherings.report(1, silent, counted(1))
    office.gatherings._answer(office.gatherings._number)
    office.ask()
    assert office.heard(1) > 1


def test_whoever_asks_during_a_gathering_shares_the_next(office: Office) -> None:
    first, second, third = office.ask(), office.ask(), office.ask()
    for number in (1, 2):
        office.report(number, counted(1))

    assert status_of(first).totals["bytes_in"] == 2
    assert (second.status, third.status) == (None, None)
    for number in (1, 2):
        office.report(number, counted(5))
    assert status_of(second) is status_of(third)
    assert status_of(third).totals["bytes_in"] == 10


def test_a_monitor_that_asks_without_end_costs_one_question_and_gets_one_answer(
    office: Office,
) -> None:
    ours, theirs = control_pair()
    for number in range(10_000):
        office.gatherings.start_for_monitor(ours, number, office.relays)

    for number in (1, 2):
        office.report(number, counted(1))

    with ours, theirs:
        theirs.settimeout(5)
        message, (descriptor,) = receive_in_child(theirs)
        assert message == StatusReply(9999)
        os.close(descriptor)
        for end in (*office.ends[1::2], theirs):
            end.setblocking(False)
            with pytest.raises(BlockingIOError):
                end.recv(1)


def test_sums_of_what_taken_over_workers_say_can_still_be_told(office: Office) -> None:
    most, words = (1 << 63) - 1, [f"{number}" for number in range(9000)]
    boast = Counts(
        numbers={"accepted": most},
        handshake_seconds=Histogram([most] * 14, 1e15),
        connect_seconds=Histogram([most] * 14, 1e15),
    )
    for start in range(0, 9000, 60):  # as by workers that die and come again
        lies = msgspec.structs.replace(boast, refused=dict.fromkeys(words[start : start + 60], 1))
        office.gatherings.report(0, office.relays[0], lies)
        office.gatherings.lost(office.relays[0])

    told = office.gatherings.status()

    assert msgspec.json.decode(msgspec.json.encode(told), type=Status) == told
    assert told.totals["accepted"] == most
    assert len(told.refused) < 9000
