"""What comes back from the service manager's store: to the relays, once, or to nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import cast

import pytest

from handfast.handover import channel
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process import arrival
from handfast.process.arrival import Arrival
from handfast.process.inheritance import Program
from handfast.process.storing import CONNECTION
from handfast.process.stowage import Door, Manifest, Stowage, identify
from handfast.process.systemd import ServiceManager
from handfast.transport.loop import Loop

DEADLINE = 20.0
Pair = tuple[socket.socket, socket.socket]


class Store:
    """A manager's store with `count` connections in it, and a listening socket."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        self.told: list[str] = []
        self.stored: list[tuple[str, int]] = []
        self.answering = True
        self._barrier = -1
        self._stack = stack
        self.door = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._stowage = Stowage()
        self.ours: list[Pair] = []
        for number in range(count):
            self._add(b"packet %d" % number)
        self.stored.append(("listener", os.dup(self.door.fileno())))
        self._seal(count)

    def _add(self, message: bytes) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        for one, other in pairs:
            self._stack.enter_context(one)
            self.stored.append((CONNECTION, os.dup(other.fileno())))
        self.ours.append((pairs[0][0], pairs[1][0]))
        identities = [identify(other.fileno()) for _, other in pairs]
        self._stowage.add(memoryview(message), memoryview(b"bulk"), identities)
        for _, other in pairs:
            other.close()

    def _seal(self, count: int) -> None:
        manifest = Manifest(
            program=Program("1", "", ()),
            began=0.0,
            started=0.0,
            doors=(Door("", ":443", 0, 5, identify(self.door.fileno())), Door("", ":80", 0, 6)),
            generation=9,
            packets=count,
        )
        self.stored.append(("state", self._stowage.seal(manifest)))

    def forget(self, name: str) -> bool:
        self.told.append(name)
        return True

    def barrier(self) -> int:
        reading, self._barrier = os.pipe()
        self._stack.callback(os.close, self._barrier)
        if self.answering:
            self.answer()
        return reading

    def answer(self) -> None:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, self._barrier)  # its end of the pipe is closed
        os.close(null)


class House:
    """Whose arrival it is."""

    def __init__(self, store: Store) -> None:
        self.loop = Loop()
        self.log = Log.open("/dev/null", Level.INFO, process_type="master")
        self.over = False
        manager = cast("ServiceManager", store)
        self.arrival = Arrival(manager, self.loop, self.log, self._end)
        self.sender, self.receiver = channel.pair()

    def _end(self) -> None:
        self.over = True
        self.loop.stop()

    def run(self) -> None:
        """Serve, until all of it is handed out."""
        late = self.loop.call_later(DEADLINE, self.loop.stop)
        self.arrival.serving((self.sender,))
        if not self.over:
            self.loop.run()
        late.cancel()
        assert self.over

    def received(self) -> list[tuple[bytes, int]]:
        """Every message with the number of its descriptors."""
        found = []
        while (taken := channel.take(self.receiver)) is not None:
            message, descriptors = taken
            found.append((bytes(message), len(descriptors)))
            for each in descriptors:
                os.close(each)
        return found


Make = Callable[..., tuple[Store, House]]


@pytest.fixture
def make() -> Iterator[Make]:
    with ExitStack() as stack:

        def build(
            count: int, change: Callable[[Store], None] = lambda _: None
        ) -> tuple[Store, House]:
            store = Store(stack, count)
            change(store)
            house = House(store)
            stack.callback(house.loop.close)
            stack.callback(house.sender.close)
            stack.callback(house.receiver.close)
            stack.callback(house.arrival.close)
            return store, house

        yield build


def closed(sock: socket.socket) -> bool:
    sock.settimeout(5)
    return sock.recv(1) == b""


def test_packets_go_to_the_relays_and_the_store_forgets_the_state_first(make: Make) -> None:
    store, house = make(3)
    inheritance = house.arrival.inheritance
    assert inheritance is not None
    assert store.told == []
    first, second = inheritance.listeners

    house.run()

    assert sorted(house.received()) == [(b"packet %d" % n, 3) for n in range(3)]
    assert store.told == ["state", CONNECTION, "listener"]
    assert (inheritance.generation, first.number, second.descriptor) == (9, 5, -1)
    assert os.path.sameopenfile(first.descriptor, store.door.fileno())
    os.close(first.descriptor)
    assert all(closed(each) for pair in store.ours for each in pair)  # no copy has stayed


def test_nothing_is_handed_out_before_the_manager_has_forgotten_it(make: Make) -> None:
    store, house = make(1)
    store.answering = False
    house.arrival.serving((house.sender,))
    assert house.received() == []
    house.loop.call_later(0, store.answer)
    house.loop.run()

    assert len(house.received()) == 1


def test_connections_are_closed_when_the_manager_does_not_say_that_it_has(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "BARRIER_SECONDS", 0.01)
    store, house = make(2)
    store.answering = False

    house.run()

    assert house.received() == []
    assert all(closed(each) for pair in store.ours for each in pair)


def test_a_full_channel_is_waited_for(make: Make) -> None:
    _, house = make(400)
    got: list[tuple[bytes, int]] = []
    house.sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    house.loop.add_reader(house.receiver.fileno(), lambda: got.extend(house.received()[:400]))

    house.run()

    assert len(got) + len(house.received()) == 400


def test_a_connection_that_lacks_a_socket_is_lost_and_no_other(make: Make) -> None:
    def lose(store: Store) -> None:
        os.close(store.stored.pop(0)[1])

    store, house = make(2, lose)

    house.run()

    assert house.received() == [(b"packet 1", 3)]
    assert closed(store.ours[0][1])


def test_of_two_descriptors_that_look_the_same_neither_is_used(make: Make) -> None:
    def double(store: Store) -> None:
        store.stored.append((CONNECTION, os.dup(store.stored[0][1])))

    _, house = make(2, double)

    house.run()

    assert house.received() == [(b"packet 1", 3)]


@pytest.mark.parametrize("states", [0, 2])
def test_without_exactly_one_state_all_is_closed_and_forgotten(make: Make, states: int) -> None:
    def change(store: Store) -> None:
        name, descriptor = store.stored.pop()
        store.stored += [(name, os.dup(descriptor)) for _ in range(states)]
        os.close(descriptor)

    store, house = make(1, change)

    assert house.arrival.inheritance is None
    assert not house.arrival.busy
    assert set(store.told) == {CONNECTION, "listener", *(["state"] if states else [])}
    assert all(closed(each) for pair in store.ours for each in pair)


def test_something_unknown_is_closed_and_the_rest_is_used(make: Make) -> None:
    reading, writing = os.pipe()

    def add(store: Store) -> None:
        store.stored.append(("news", writing))

    store, house = make(1, add)
    house.run()

    assert os.read(reading, 1) == b""
    assert "news" in store.told
    assert len(house.received()) == 1
    os.close(reading)
