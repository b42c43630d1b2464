"""Connections whose TLS is the target's: bytes as they are, ends as they are, nothing of ours."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from handfast.config import Route, Timeouts
from handfast.handover.message import Passthrough
from handfast.tls.session import Peer as Who
from unit.relay.relaying import (
    Peer,
    Relaying,
    listener_of,
    listening,
    plan_of,
    relaying,
    service_of,
)

WHO = Who("192.0.2.1", 4433, "db.example.com")
HELLO = b"\x16\x03\x01\x00\x05hello"


@pytest.fixture
def door() -> Iterator[socket.socket]:
    with listening() as sock:
        yield sock


@pytest.fixture
def front(door: socket.socket) -> Iterator[Relaying]:
    route = Route(sni=("db.example.com",), passthrough=True, service=service_of(door))
    plan = plan_of(listener_of(None, route), timeouts=Timeouts(idle=10, half_closed=5))
    with relaying(plan) as made:
        yield made


def through(front: Relaying, unread: bytes = HELLO) -> Peer:
    return Peer(front, front.give(Passthrough(WHO, unread)))


def test_what_was_peeked_comes_first_and_the_rest_as_it_is(
    front: Relaying, door: socket.socket
) -> None:
    up, down = os.urandom(3_000_000), os.urandom(3_000_000)
    client = through(front)
    target = front.target(door)

    client.send_all(up[:1000])
    assert target.receive(len(HELLO) + 1000) == HELLO + up[:1000]
    for start in range(1000, len(up), 1 << 16):
        client.send_all(up[start : start + (1 << 16)])
        target.look()
    for start in range(0, len(down), 1 << 16):
        target.send_all(down[start : start + (1 << 16)])
        client.look()

    assert target.receive(len(up) - 1000) == up[1000:]
    assert client.receive(len(down)) == down


def test_a_large_hello_is_not_lost_when_the_target_is_slow_to_take_it(
    front: Relaying, door: socket.socket
) -> None:
    hello = os.urandom(150_000)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client = through(front, hello)
    target = front.target(door)
    client.send_all(b"and more")

    assert target.receive(len(hello) + 8) == hello + b"and more"


def test_fin_becomes_fin_and_the_other_direction_goes_on(
    front: Relaying, door: socket.socket
) -> None:
    client = through(front)
    target = front.target(door)
    client.finish()
    target.wait_for_the_end()
    assert not target.was_reset
    target.send_all(b"answer")

    assert client.receive(6) == b"answer"

    target.finish()
    client.wait_for_the_end()
    assert not client.was_reset
    assert not front.connections
    ended = front.event(subevent="client_disconnect")
    assert "error_msg" not in ended
    assert ended["bytes_in"] == str(len(HELLO))
    assert "error_msg" not in front.event(subevent="server_disconnect")


def test_a_reset_of_the_client_becomes_a_reset(front: Relaying, door: socket.socket) -> None:
    client = through(front)
    target = front.target(door)
    client.reset()

    target.wait_for_the_end()

    assert target.was_reset
    assert front.event(subevent="client_disconnect")["error_msg"] == "read from the client failed"


def test_a_reset_of_the_target_becomes_a_reset_without_a_byte_of_ours(
    front: Relaying, door: socket.socket
) -> None:
    client = through(front)
    target = front.target(door)
    target.receive(len(HELLO))
    target.reset()

    client.wait_for_the_end()

    assert client.was_reset
    assert client.received == b""


def test_a_target_that_refuses_resets_the_client_without_a_byte_of_ours() -> None:
    with listening() as gone:
        service = service_of(gone)
    plan = plan_of(listener_of(None, Route(passthrough=True, service=service)))
    with relaying(plan) as front:
        client = through(front)

        client.wait_for_the_end()

        assert client.was_reset
        assert client.received == b""
        assert front.event(subevent="server_connect")["error_msg"].startswith("cannot connect")


def test_without_a_route_it_is_reset(door: socket.socket) -> None:
    with relaying(plan_of(listener_of(service_of(door)))) as front:
        client = through(front)

        client.wait_for_the_end()

        assert client.was_reset


@pytest.mark.parametrize(("half_closed", "seconds"), [(False, 11), (True, 6)])
def test_when_its_time_is_over_both_sides_are_reset(
    front: Relaying, door: socket.socket, half_closed: bool, seconds: int
) -> None:
    client = through(front)
    target = front.target(door)
    target.receive(len(HELLO))
    if half_closed:
        client.finish()
        target.wait_for_the_end()

    front.loop.advance(seconds)

    client.wait_for_the_end()
    assert client.was_reset
    assert not front.connections


def test_the_log_tells_the_name_and_no_version(front: Relaying) -> None:
    through(front)

    connected = front.event(subevent="client_connect")

    assert connected["sni"] == "db.example.com"
    assert "tls_version" not in connected
