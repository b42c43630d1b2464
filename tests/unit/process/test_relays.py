from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence

import pytest

from handfast.process import family as families
from handfast.process.child import Child
from handfast.process.messages import Configure, Configured, End, FromChild, Ready, send
from handfast.process.relays import Life, Relays
from handfast.process.sealed import seal, unseal
from handfast.transport.census import Column
from unit.process.household import Household, orders


def life(
    child: Child, control: socket.socket, receivers: Sequence[socket.socket], names: socket.socket
) -> int:
    """Go by every plan that says something, and say so."""
    send(control, Ready())
    for message, descriptors in orders(control):
        if isinstance(message, End):
            return 0
        if isinstance(message, Configure) and unseal(descriptors[0]) != b"wait":
            send(control, Configured(message.generation))
        for each in descriptors:
            os.close(each)
    return 0


class Pair(Household):
    """Two relays, and the plans that were confirmed."""

    def __init__(self, run: Life = life, columns: int = 2) -> None:
        super().__init__(columns)
        self.relays = Relays(2, self.family, self.columns, self.loop, run)
        self.plans: list[int] = []
        self.done: list[int] = []

    def heard(self, child: Child, message: FromChild, descriptors: list[int]) -> None:
        if isinstance(message, Configured):
            self.relays.confirmed(child, message.generation)
        else:
            child.ready = True

    def buried(self, child: Child, status: int) -> None:
        self.relays.died(child, status)

    def configure(self, generation: int, text: bytes = b"go on") -> None:
        self.plans.append(seal("plan", text))
        self.relays.configure(generation, self.plans[-1], lambda: self.done.append(generation))

    def confirmed(self) -> list[tuple[str, int]]:
        return sorted(
            (child.worker_id, each.generation)
            for child, each in self.told
            if isinstance(each, Configured)
        )

    def close(self) -> None:
        self._known.update(self.relays.children)
        super().close()
        self.relays.close()
        for each in self.plans:
            os.close(each)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_relays_have_columns_and_get_ready(pair: Pair) -> None:
    pair.relays.start()

    pair.until(lambda: pair.relays.ready)

    assert {each.column for each in pair.relays.children} == {0, 1}


def test_a_plan_is_done_when_all_of_them_go_by_it(pair: Pair) -> None:
    pair.relays.start()
    pair.configure(1)
    assert pair.done == []

    pair.until(lambda: pair.done)

    assert pair.confirmed() == [("relay-1", 1), ("relay-2", 1)]
    assert pair.done == [1]


def test_a_plan_that_was_confirmed_before_counts_for_no_other(pair: Pair) -> None:
    pair.relays.start()
    pair.configure(1, b"wait")
    for each in pair.relays.children:
        pair.relays.confirmed(each, 7)

    assert pair.done == []


def test_a_relay_that_dies_is_not_waited_for_and_its_successor_begins_with_the_plan(
    pair: Pair,
) -> None:
    pair.relays.start()
    pair.until(lambda: pair.relays.ready)
    first, second = pair.relays.children
    pair.configure(2)
    os.kill(first.pid, signal.SIGKILL)
    pair.until(lambda: pair.done and first.restarts and first.ready)

    pair.until(lambda: {("relay-1", 2), ("relay-2", 2)} <= {*pair.confirmed()})
    assert pair.done == [2]
    assert (first.restarts, second.restarts) == (1, 0)


def test_the_column_of_a_relay_that_died_is_clear(pair: Pair) -> None:
    pair.relays.start()
    pair.until(lambda: pair.relays.ready)
    first = pair.relays.children[0]
    Column(pair.census, first.column).hold(pair.census.place(0, "192.0.2.1"))
    assert pair.census.connections() == 1

    os.kill(first.pid, signal.SIGKILL)
    pair.until(lambda: pair.lost and first.ready)

    assert pair.census.connections() == 0
    assert {each.column for each in pair.relays.children} == {0, 1}


def test_those_that_are_silent_are_named_and_no_longer_waited_for(pair: Pair) -> None:
    pair.relays.start()
    pair.until(lambda: pair.relays.ready)
    pair.configure(1, b"wait")

    assert {*pair.relays.give_up_waiting()} == {*pair.relays.children}
    assert pair.done == [1]
    assert pair.relays.give_up_waiting() == []


def test_a_newer_plan_takes_the_place_of_one_that_is_waited_for(pair: Pair) -> None:
    pair.relays.start()
    pair.until(lambda: pair.relays.ready)
    pair.configure(1, b"wait")
    pair.configure(2)

    pair.until(lambda: pair.done)

    assert pair.done == [2]


def test_a_relay_that_cannot_be_forked_is_tried_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fork(*_: object) -> int:
        raise BlockingIOError

    with monkeypatch.context() as full:
        full.setattr(families, "fork", no_fork)
        pair.relays.start()
        assert [each.column for each in pair.relays.children] == [-1, -1]

    pair.until(lambda: pair.relays.ready)
    assert {each.column for each in pair.relays.children} == {0, 1}


def test_draining_relays_end_and_are_not_replaced(pair: Pair) -> None:
    pair.relays.start()
    pair.until(lambda: pair.relays.ready)

    assert pair.relays.drain()
    pair.until(lambda: len(pair.lost) == 2)

    assert not pair.relays.drain()
    assert all(not each.pid for each in pair.relays.children)
    assert not any("error_msg" in each for each in pair.events("worker"))


def test_relays_are_told_to_end_their_connections(pair: Pair) -> None:
    pair.relays.start()
    pair.until(lambda: pair.relays.ready)

    pair.relays.end("handfast is stopping")

    pair.until(lambda: len(pair.lost) == 2)


def echo(
    child: Child, control: socket.socket, receivers: Sequence[socket.socket], names: socket.socket
) -> int:
    send(control, Ready())
    names.setblocking(True)
    while (data := names.recv(100)) != b"die":
        names.send(data.upper())
    return 0


def test_what_waits_in_a_channel_is_taken_by_the_relay_that_follows() -> None:
    pair = Pair(echo)
    pair.relays.start()
    pair.until(lambda: pair.relays.ready)
    end = pair.relays.resolver_ends[0]
    end.send(b"die")
    end.send(b"a question")

    end.settimeout(30)
    pair.until(lambda: pair.lost and pair.relays.children[0].ready)

    assert end.recv(100) == b"A QUESTION"
    assert len(pair.relays.senders) == 2
    pair.close()
