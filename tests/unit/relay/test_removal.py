"""Connections that a relay gives to another: which go, when, and what becomes of the relay."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from handfast.handover import channel
from handfast.handover.message import Established, Handover
from harness.homes import stays
from harness.processes import descriptors
from unit.relay.relaying import (
    Peer,
    Relaying,
    TlsClient,
    listener_of,
    listening,
    plan_of,
    relaying,
    service_of,
)

pytestmark = stays


class Leaving:
    """A relay that carries some connections, and the channel that they are to go to."""

    def __init__(self, front: Relaying, door: socket.socket, stack: ExitStack) -> None:
        self.front = front
        self.door = door
        self.sender, self.receiver = channel.pair()
        stack.enter_context(self.sender)
        stack.enter_context(self.receiver)
        self.removed: list[int] = []
        self.taken: list[Handover] = []
        self._stack = stack
        self._clients: list[socket.socket] = []

    def connect(self, count: int) -> list[tuple[TlsClient, Peer]]:
        made = []
        for _ in range(count):
            client = self.front.client()
            made.append((client, self.front.target(self.door)))
        self.front.until(
            lambda: len(self.front.events("proxy", subevent="server_connect")) == count
        )
        return made

    def give_away(self, most: int | None) -> None:
        copy = socket.socket(fileno=os.dup(self.sender.fileno()))
        self.front.relay.give_away([copy], most, self.removed.append)

    def take(self) -> int:
        """Take what is in the channel; give how many there were."""
        count = 0
        while (found := channel.receive(self.receiver)) is not None:
            self.taken.append(found[0])
            sockets = [socket.socket(fileno=each) for each in found[1]]
            self._clients.append(sockets[0])
            for each in sockets:
                self._stack.enter_context(each)
            count += 1
        return count

    def clients(self) -> list[socket.socket]:
        """The clients' sockets that were taken."""
        return self._clients

    def turn(self) -> None:
        self.front.loop.advance(0.3)
        self.front.loop.turn()


@pytest.fixture
def leaving() -> Iterator[Leaving]:
    with (
        ExitStack() as stack,
        listening() as door,
        relaying(plan_of(listener_of(service_of(door)))) as front,
    ):
        yield Leaving(front, door, stack)


def test_all_go_and_the_relay_ends_behind_them(leaving: Leaving) -> None:
    leaving.connect(5)

    leaving.give_away(None)
    leaving.turn()

    assert leaving.take() == 5
    leaving.front.until(lambda: leaving.front.drained)
    assert leaving.removed == [5]
    assert leaving.front.relay.counters.active == 0
    assert leaving.front.census.connections() == 0


def test_some_go_and_the_relay_goes_on(leaving: Leaving) -> None:
    leaving.connect(5)

    leaving.give_away(2)
    leaving.turn()

    assert leaving.take() == 2
    assert leaving.removed == [2]
    assert len(leaving.front.connections) == 3
    assert not leaving.front.drained
    leaving.front.client()
    assert len(leaving.front.connections) == 4


def test_no_more_go_than_there_are(leaving: Leaving) -> None:
    leaving.connect(2)

    leaving.give_away(7)
    leaving.turn()

    assert leaving.take() == 2
    assert leaving.removed == [2]


def test_a_full_channel_holds_them_back_and_none_goes_twice(leaving: Leaving) -> None:
    leaving.sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    made = leaving.connect(20)

    leaving.give_away(None)
    leaving.turn()
    first = leaving.take()
    left = len(leaving.front.connections)
    while not leaving.removed:
        leaving.turn()
        leaving.take()

    assert 0 < first < 20
    assert left in {20 - first, 20 - first - 1}  # one waits, already taken out
    assert leaving.removed == [20]
    ports = [each.getpeername()[1] for each in leaving.clients()]
    assert sorted(ports) == sorted(client.sock.getsockname()[1] for client, _ in made)


def test_what_has_no_target_yet_goes_when_it_has_one(leaving: Leaving) -> None:
    leaving.front.client()  # its target has not been accepted, but loopback has connected it
    leaving.give_away(None)
    leaving.turn()
    leaving.front.until(lambda: leaving.front.events("proxy", subevent="server_connect"))
    leaving.turn()

    assert leaving.take() == 1
    (handover,) = leaving.taken
    assert isinstance(handover.session, Established)
    assert handover.session.state == "ready"


def test_nothing_is_taken_in_any_more(leaving: Leaving) -> None:
    leaving.give_away(None)
    leaving.turn()
    leaving.front.until(lambda: leaving.front.drained)

    leaving.front.client()

    assert not leaving.front.connections


def test_a_broken_channel_ends_the_connections_and_is_told(leaving: Leaving) -> None:
    ((client, target),) = leaving.connect(1)
    before = descriptors(os.getpid())
    leaving.receiver.close()

    leaving.give_away(None)
    leaving.turn()
    client.wait_for_the_end()
    target.wait_for_the_end()

    fault = leaving.front.event("system_error")
    assert fault["error_msg"] == "a connection cannot be handed over"
    assert leaving.front.drained
    assert descriptors(os.getpid()) < before


def test_bytes_are_counted_once_for_all_relays(leaving: Leaving) -> None:
    """A total that went down would look like a restart."""
    ((client, target),) = leaving.connect(1)
    client.write(b"hello")
    assert target.receive(5) == b"hello"

    leaving.give_away(None)
    leaving.turn()
    leaving.take()

    counters = leaving.front.relay.counters
    assert counters.counts().numbers["bytes_in"] == 5
