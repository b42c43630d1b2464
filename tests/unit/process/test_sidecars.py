from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handfast.config import Address, HandoffAddress, TargetAddress, TcpAddress, UnixAddress
from handfast.errors import HandfastError
from handfast.process import family as families
from handfast.process import roles
from handfast.process.child import Child, Kind
from handfast.process.isolation import Identity
from handfast.process.messages import FromChild, Ready, Report, Serve, send
from handfast.process.relays import Relays
from handfast.process.roles import Common
from handfast.process.sealed import unseal
from handfast.process.sidecars import Sidecars
from unit.process.household import LOCAL, Household, obedient_relay, orders

ADDRESSES = (TcpAddress(host="backend", port=80), UnixAddress(path="/run/backend"))


def resolver(control: socket.socket, channels: object, addresses: Any, common: object) -> int:
    """Tell by its exit status how many targets it began with, and then was told of."""
    count = len(addresses)
    send(control, Ready())
    for message, descriptors in orders(control):
        if isinstance(message, Serve):
            return 10 * count + len(msgspec.msgpack.decode(unseal(descriptors[0])))
    return 0


def server(control: socket.socket, listening: socket.socket, common: object) -> int:
    """Answer one client."""
    send(control, Ready())
    listening.setblocking(True)
    client, _ = listening.accept()
    client.sendall(b"hello")
    client.close()
    return 0


class Beside(Household):
    """The sidecars of a supervisor that has no relay running."""

    def __init__(
        self,
        metrics: Address | None,
        demo: socket.socket | None,
        targets: tuple[TargetAddress, ...],
    ) -> None:
        super().__init__()
        self.relays = Relays(1, self.family, self.columns, self.loop, obedient_relay)
        common = Common(self.log, Identity(), self.census)
        self.sidecars = Sidecars(metrics, demo, self.relays, self.family, self.loop, common)
        self.sidecars.listen()
        self.sidecars.resolve_for(targets)

    def heard(self, child: Child, message: FromChild, descriptors: list[int]) -> None:
        child.ready = child.ready or isinstance(message, Ready)
        assert not isinstance(message, Report)

    def buried(self, child: Child, status: int) -> None:
        self.sidecars.died(child, status)

    def close(self) -> None:
        self.sidecars.end()
        super().close()
        self.relays.close()
        self.sidecars.close()


@contextmanager
def running(
    metrics: Address | None = None,
    demo: socket.socket | None = None,
    targets: tuple[TargetAddress, ...] = ADDRESSES,
) -> Iterator[Beside]:
    made = Beside(metrics, demo, targets)
    try:
        yield made
    finally:
        made.close()


def has_lost(beside: Beside, count: int) -> bool:
    return len(beside.lost) == count


@pytest.fixture(autouse=True)
def lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the sidecars do here is simple."""
    monkeypatch.setattr(roles, "resolver", resolver)
    monkeypatch.setattr(roles, "serve_metrics", server)
    monkeypatch.setattr(roles, "serve_demo", server)


def test_the_others_are_there_when_they_have_a_place() -> None:
    with (
        socket.create_server((LOCAL, 0)) as demo,
        running() as alone,
        running(TcpAddress(host=LOCAL, port=0), demo) as all_three,
    ):
        assert [each.kind for each in alone.sidecars.children] == [Kind.RESOLVER]
        kinds = [each.kind for each in all_three.sidecars.children]
        assert kinds == [Kind.RESOLVER, Kind.MONITOR, Kind.DEMO]


def test_a_resolver_is_there_from_the_first_target_on_that_is_no_ip_address() -> None:
    numeric = tuple(TcpAddress(host=host, port=80) for host in (LOCAL, "::1"))
    with running(targets=numeric) as beside:
        beside.sidecars.start()
        assert (beside.sidecars.children, beside.sidecars.ready) == ((), True)

        beside.sidecars.resolve_for((*numeric, ADDRESSES[0]))
        beside.until(lambda: len(beside.told) == 1 and beside.sidecars.ready)
        beside.sidecars.resolve_for(numeric)

        assert [each.kind for each in beside.sidecars.children] == [Kind.RESOLVER]


@pytest.mark.parametrize(
    "address",
    [
        TcpAddress(host="localhost", port=80),
        TcpAddress(host="fe80::1%lo", port=80),
        UnixAddress(path="/run/backend"),
        HandoffAddress(path="/run/application"),
    ],
)
def test_what_a_relay_cannot_connect_to_by_itself_needs_a_resolver(address: TargetAddress) -> None:
    with running(targets=(address,)) as beside:
        assert [each.kind for each in beside.sidecars.children] == [Kind.RESOLVER]


def test_they_are_ready_when_all_of_them_are() -> None:
    with running(TcpAddress(host=LOCAL, port=0)) as beside:
        assert not beside.sidecars.ready
        beside.sidecars.start()

        beside.until(lambda: beside.sidecars.ready)

        assert len(beside.told) == 2


def test_one_that_ends_is_replaced_and_its_socket_stays() -> None:
    with socket.create_server((LOCAL, 0)) as demo, running(demo=demo) as beside:
        beside.sidecars.start()
        child = beside.sidecars.children[1]
        for count in (1, 2):
            with socket.create_connection(demo.getsockname(), 20) as client:
                assert client.recv(10) == b"hello"
            beside.until(partial(has_lost, beside, count))
            beside.until(lambda: child.ready)

        assert child.restarts == 2


def test_the_resolver_serves_each_target_once_and_its_successor_begins_with_them() -> None:
    with running() as beside:
        beside.sidecars.resolve_for(ADDRESSES[:1])
        beside.sidecars.start()
        beside.until(lambda: beside.sidecars.ready)

        beside.sidecars.resolve_for((*ADDRESSES, *ADDRESSES))
        beside.until(lambda: beside.lost and beside.sidecars.ready)
        beside.sidecars.resolve_for(())
        beside.until(lambda: len(beside.lost) == 2)

        assert [status for _, status in beside.lost] == [12, 20]


def test_one_that_cannot_be_forked_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_fork(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with running() as beside:
        with monkeypatch.context() as full:
            full.setattr(families, "fork", no_fork)
            beside.sidecars.start()
        assert beside.events("system_error")[0]["error_msg"] == "cannot fork resolver"

        beside.until(lambda: beside.sidecars.ready)


def test_none_is_replaced_at_the_end() -> None:
    with running() as beside:
        beside.sidecars.start()
        beside.until(lambda: beside.sidecars.ready)

        beside.sidecars.end()
        beside.sidecars.resolve_for(ADDRESSES)
        beside.until(lambda: beside.lost)
        ticks: list[Callable[[], None]] = []
        beside.loop.call_later(0.05, lambda: ticks.append(lambda: None))
        beside.until(lambda: ticks)

        assert not beside.family.children


def test_a_place_for_the_metrics_that_is_taken_is_told() -> None:
    with socket.create_server((LOCAL, 0)) as other:
        taken = TcpAddress(host=LOCAL, port=other.getsockname()[1])
        home = Household()
        relays = Relays(1, home.family, home.columns, home.loop, obedient_relay)
        common = Common(home.log, Identity(), home.census)
        with pytest.raises(HandfastError, match=f"cannot listen on {taken}"):
            Sidecars(taken, None, relays, home.family, home.loop, common).listen()
        relays.close()
        home.close()


def test_the_unix_socket_of_the_metrics_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    with running(UnixAddress(path=str(path))):
        assert path.is_socket()

    assert not path.exists()
