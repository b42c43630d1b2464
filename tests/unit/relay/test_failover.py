"""One target after another: real sockets, real deadlines, a resolver that the test answers for."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from handfast.config import Address, Service, Target, TcpAddress, UnixAddress
from handfast.errors import BackendError
from handfast.observe import events
from handfast.relay import question
from handfast.relay.failover import Failover
from handfast.relay.question import Connected, NotFound
from handfast.relay.resolver import Resolver
from handfast.relay.targets import Targets
from handfast.transport.deadlines import Deadlines
from handfast.transport.loop import Loop
from harness.processes import descriptors

LOCAL = "127.0.0.1"
PATIENCE = 20.0


class Relay:
    """What a relay has that a failover needs, and what its failovers came to."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.deadlines = Deadlines(self.loop)
        self.channel, self.answering = question.pair()
        self.resolver = Resolver(self.loop, self.channel)
        self.events: list[events.Event] = []
        self.targets = Targets(self.loop.time, self.events.append)
        self.connected: list[tuple[socket.socket, Any]] = []
        self.failed: list[BackendError] = []

    def failover(self, *addresses: Address, limit: int = 0, timeout: float = 5.0) -> Failover:
        targets = tuple(Target(address=each, max_connections=limit) for each in addresses)
        service = Service(targets=targets)
        self.targets.configure([service], 1)
        return Failover(
            self.targets.pool(service),
            self.resolver,
            self.deadlines,
            self.loop,
            timeout,
            self._connected,
            self.failed.append,
        )

    def _connected(self, sock: socket.socket, address: Any) -> None:
        self.connected.append((sock, address))

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            self.loop.call_later(0.01, self.loop.stop)
            self.loop.run()

    def run(self, failover: Failover) -> None:
        """Run it until it connects or fails."""
        count = len(self.connected) + len(self.failed)
        failover.start()
        self.until(lambda: len(self.connected) + len(self.failed) > count)

    def active(self) -> int:
        return sum(state.active for state in self.targets.states())

    def close(self) -> None:
        for sock, _ in self.connected:
            sock.close()
        self.channel.close()
        self.answering.close()
        self.loop.close()


@pytest.fixture
def relay() -> Iterator[Relay]:
    one = Relay()
    yield one
    one.close()


def address_of(sock: socket.socket) -> TcpAddress:
    host, port = sock.getsockname()[:2]
    return TcpAddress(host=host, port=port)


@pytest.fixture
def up() -> Iterator[TcpAddress]:
    with socket.create_server((LOCAL, 0)) as server:
        yield address_of(server)


@pytest.fixture
def down() -> Iterator[TcpAddress]:
    with socket.socket() as bound:  # bound but not listening: nobody else gets the port
        bound.bind((LOCAL, 0))
        yield address_of(bound)


@pytest.fixture
def silent() -> Iterator[TcpAddress]:
    with socket.create_server((LOCAL, 0), backlog=0) as full, socket.socket() as first:
        first.connect(full.getsockname())
        yield address_of(full)


def test_a_target_that_refuses_gives_way_to_the_next(
    relay: Relay, up: TcpAddress, down: TcpAddress
) -> None:
    failover = relay.failover(down, up)
    relay.run(failover)
    failover.target.succeeded()

    [(sock, address)] = relay.connected
    assert address == sock.getpeername() == (up.host, up.port)
    assert failover.target.address == up
    assert relay.events == [
        events.Target(
            state="down",
            address=str(down),
            error_msg=f"cannot connect to {LOCAL} port {down.port}",
            error_desc="Connection refused",
        )
    ]


def test_a_silent_target_has_its_share_of_the_time_and_then_the_next_is_tried(
    relay: Relay, up: TcpAddress, silent: TcpAddress
) -> None:
    failover = relay.failover(silent, up, timeout=0.6)

    started = time.monotonic()
    relay.run(failover)
    took = time.monotonic() - started

    assert failover.target.address == up
    assert 0.3 <= took < 0.6
    [event] = relay.events
    assert isinstance(event, events.Target)
    assert event.error_msg == "no connection after 0.3 s"


def test_each_target_is_tried_once_and_then_it_fails_with_the_last_reason(
    relay: Relay, down: TcpAddress
) -> None:
    other = TcpAddress(host="127.0.0.2", port=down.port)
    relay.run(relay.failover(down, other))

    [error] = relay.failed
    assert error.reason == f"cannot connect to 127.0.0.2 port {down.port}"
    assert len(relay.events) == 2
    assert relay.active() == 0


def test_a_hundred_targets_that_refuse_are_no_deep_recursion(relay: Relay) -> None:
    addresses = [TcpAddress(host=f"127.1.{number}.1", port=1) for number in range(1, 200)]
    relay.run(relay.failover(*addresses))

    assert len(relay.failed) == 1
    assert relay.active() == 0


def test_a_target_that_comes_back_is_found_by_a_trial(relay: Relay, up: TcpAddress) -> None:
    with socket.socket() as later:
        later.bind((LOCAL, 0))
        address = address_of(later)
        relay.run(relay.failover(address, up))
        later.listen()
        state = next(each for each in relay.targets.states() if each.address == address)
        relay.until(lambda: relay.loop.time() >= state.until)

        for _ in range(2):
            failover = relay.failover(address, up)
            relay.run(failover)
            failover.target.succeeded()

    assert [event.state for event in relay.events if isinstance(event, events.Target)] == [
        "down",
        "up",
    ]
    assert {peer for _, peer in relay.connected} == {(LOCAL, up.port), (LOCAL, address.port)}


def test_all_down_is_no_reason_to_refuse_without_a_try(relay: Relay) -> None:
    with socket.socket() as later:
        later.bind((LOCAL, 0))
        address = address_of(later)
        relay.run(relay.failover(address))
        later.listen()

        relay.run(relay.failover(address))

    assert (len(relay.failed), len(relay.connected)) == (1, 1)


def test_a_handshake_that_fails_makes_for_the_next_target(relay: Relay, up: TcpAddress) -> None:
    with socket.create_server(("127.0.0.2", 0)) as other:
        failover = relay.failover(address_of(other), up)
        relay.run(failover)
        first = failover.target

        failover.retry(BackendError("no TLS session with the target"))
        relay.until(lambda: len(relay.connected) == 2)

    assert not first.up
    assert first.active == 0
    assert failover.target.address == up
    assert failover.until > relay.loop.time()


def test_when_every_target_is_full_it_says_so(relay: Relay, up: TcpAddress) -> None:
    first = relay.failover(up, limit=1)
    relay.run(first)
    relay.run(relay.failover(up, limit=1))
    first.target.release()
    relay.run(relay.failover(up, limit=1))

    assert [str(error) for error in relay.failed] == ["every target is at its limit of connections"]
    assert len(relay.connected) == 2


def test_a_unix_target_comes_connected(relay: Relay) -> None:
    near, far = socket.socketpair()
    failover = relay.failover(UnixAddress(path="/run/app.sock"))
    failover.start()
    asked = question.receive_question(relay.answering)
    assert asked is not None

    with near, far:
        question.send(relay.answering, Connected(asked.number), near)
        relay.until(lambda: relay.connected)
        [(sock, address)] = relay.connected
        sock.send(b"hello")
        received = far.recv(100)

    assert received == b"hello"
    assert address == ("unix:/run/app.sock", 0)


def test_a_unix_target_that_is_not_there_gives_way(relay: Relay, up: TcpAddress) -> None:
    failover = relay.failover(UnixAddress(path="/run/app.sock"), up)
    failover.start()
    asked = question.receive_question(relay.answering)
    assert asked is not None

    question.send(relay.answering, NotFound(asked.number, "cannot connect", "No such file"))
    relay.until(lambda: relay.connected)

    assert failover.target.address == up


def test_a_socket_that_comes_too_late_is_closed(relay: Relay) -> None:
    before = descriptors(os.getpid())
    near, far = socket.socketpair()
    failover = relay.failover(UnixAddress(path="/run/app.sock"))
    failover.start()
    asked = question.receive_question(relay.answering)
    assert asked is not None

    failover.cancel()
    with near, far:
        question.send(relay.answering, Connected(asked.number), near)
        near.close()
        far.settimeout(0)
        relay.until(lambda: _at_end(far))

    assert descriptors(os.getpid()) == before
    assert relay.active() == 0
    assert not relay.connected


def _at_end(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False


def test_cancelling_gives_everything_back_at_every_stage(
    relay: Relay, up: TcpAddress, down: TcpAddress, silent: TcpAddress
) -> None:
    dialling = relay.failover(silent)
    dialling.start()
    between = relay.failover(down, up)
    between.start()
    between.retry(BackendError("it will not do"))
    connected = relay.failover(up)
    relay.run(connected)
    relay.until(lambda: relay.active() == 2)

    for failover in (dialling, between, connected):
        failover.cancel()
    relay.loop.call_later(0.05, relay.loop.stop)
    relay.loop.run()

    assert relay.active() == 0
    assert len(relay.connected) == 1
    assert not relay.failed
