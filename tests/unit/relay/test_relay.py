"""What a relay takes, counts and keeps."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from handfast.config import Route
from handfast.handover.message import Handover, Passthrough
from handfast.relay.connection import Connection
from handfast.relay.relay import WARM_LIMIT
from handfast.tls.session import Direction, Peer, Role, Session
from harness.homes import IN_KERNEL
from unit.relay.relaying import Relaying, listener_of, listening, plan_of, relaying, service_of

SESSION = Session(
    Role.SERVER, 0x1301, Direction(bytearray(b"r" * 32)), Direction(bytearray(b"w" * 32))
)
NOWHERE = listener_of(None)


@pytest.fixture
def idle() -> Iterator[Relaying]:
    with relaying(plan_of(NOWHERE)) as front:
        yield front


def connections(front: Relaying, count: int, touched: float) -> list[Connection]:
    made = []
    for _ in range(count):
        with socket.socket() as sock:
            connection = Connection(front.relay, NOWHERE, sock, Handover(0, 1, 0.0, SESSION))
        connection.touched = touched
        made.append(connection)
    return made


def test_beyond_the_limit_the_quiet_ones_forget_their_keys(idle: Relaying) -> None:
    quiet = connections(idle, WARM_LIMIT, 1000.0)
    busy = connections(idle, 100, 1010.0)

    for connection in quiet + busy:
        idle.relay.warm_up(connection)

    assert sum(connection.warm for connection in quiet) == WARM_LIMIT - 100
    assert all(connection.warm for connection in busy)


def test_those_that_were_used_just_now_keep_theirs_however_many_they_are(idle: Relaying) -> None:
    busy = connections(idle, WARM_LIMIT + 100, 1000.0)

    for connection in busy:
        idle.relay.warm_up(connection)

    assert all(connection.warm for connection in busy)


def test_their_number_goes_down_again_after_a_burst(idle: Relaying) -> None:
    burst = connections(idle, WARM_LIMIT + 200, 1000.0)
    later = connections(idle, 200, 1010.0)

    for connection in burst + later:
        idle.relay.warm_up(connection)

    assert sum(connection.warm for connection in burst + later) == WARM_LIMIT


def test_a_client_goes_where_its_route_says_and_else_where_its_listener_says() -> None:
    with listening() as ours, listening() as others:
        route = Route(sni=("*.example.com",), service=service_of(ours))
        with relaying(plan_of(listener_of(service_of(others), route))) as front:
            client = front.client(lambda session: _named(session, "WWW.example.com"))
            client.write(b"by name")
            assert front.target(ours).receive(7) == b"by name"

            other = front.client(lambda session: _named(session, "www.example.org"))
            other.write(b"by default")
            assert front.target(others).receive(10) == b"by default"


def _named(session: Session, sni: str) -> Session:
    fields = {name: getattr(session, name) for name in session.__struct_fields__}
    return Session(**{**fields, "peer": Peer("192.0.2.1", 4433, sni)})


def test_a_client_without_a_route_is_told_that_it_may_not_be_here() -> None:
    with relaying(plan_of(listener_of(None))) as front:
        client = front.client()

        with pytest.raises(Exception, match="access_denied"):
            client.until(lambda: False)
        assert front.event(subevent="client_disconnect")["error_msg"] == "no target for this name"
    assert not front.connections


def test_a_client_of_a_listener_that_is_gone_is_told_so_and_logged() -> None:
    with relaying(plan_of(listener_of(None))) as front:
        client = front.client(listener=7)

        with pytest.raises(Exception, match="access_denied"):
            client.until(lambda: False)
        client.wait_for_the_end()
        refused = front.event("system_error", error_msg="a hand-over was refused")
    assert refused["error_desc"] == "listener 7 is no longer configured"


def test_a_passed_through_client_of_a_listener_that_is_gone_is_reset_and_told_nothing() -> None:
    with relaying(plan_of(listener_of(None))) as front:
        client = front.give(Passthrough(Peer("192.0.2.1", 4433), b"hello"), listener=7)

        with pytest.raises(ConnectionResetError):
            client.recv(10)


def test_connections_are_counted_in_the_census_until_they_end() -> None:
    with listening() as door, relaying(plan_of(listener_of(service_of(door)))) as front:
        client = front.client()
        target = front.target(door)
        assert front.census.connections() == 1
        assert front.census.of_listener(front.connections[0].place) == 1

        client.send_all(client.end.writer.alert(0))
        target.sock.close()
        client.wait_for_the_end()

        assert front.census.connections() == 0


def test_the_counts_have_the_bytes_of_open_connections_and_of_those_that_ended() -> None:
    with listening() as door, relaying(plan_of(listener_of(service_of(door)))) as front:
        first, second = front.client(), front.client()
        targets = [front.target(door), front.target(door)]
        first.write(b"12345")
        second.write(b"123")
        for each in targets:
            each.receive(3)
            each.send_all(b"12")
        first.receive(2)
        second.receive(2)
        first.sock.close()
        front.until(lambda: len(front.connections) == 1)

        numbers = front.relay.counters.counts().numbers

    assert numbers["bytes_in"] == 8
    assert numbers["bytes_out"] == 4
    assert numbers["relayed"] == 2
    assert numbers["active"] == 1


def test_the_counts_tell_how_each_target_is() -> None:
    with listening() as door, relaying(plan_of(listener_of(service_of(door)))) as front:
        front.client()
        front.target(door)
        front.until(lambda: front.events(subevent="server_connect"))
        where = (("target", f"127.0.0.1:{door.getsockname()[1]}"),)

        gauges = front.relay.counters.counts().gauges

    assert {(each.name, each.labels): each.value for each in gauges} == {
        ("longest_stall_seconds", ()): front.relay.counters.longest_stall,
        ("sessions", (("transport", "user"),)): not IN_KERNEL,
        ("sessions", (("transport", "kernel"),)): IN_KERNEL,
        ("sessions", (("transport", "kernel-tx"),)): 0,
        ("target_up", where): 1,
        ("target_connections", where): 1,
    }


def test_a_relay_has_drained_when_its_last_connection_has_ended() -> None:
    with listening() as door, relaying(plan_of(listener_of(service_of(door)))) as front:
        client = front.client()
        front.target(door)
        front.relay.drain()
        front.relay.drain()
        assert not front.drained

        client.sock.close()

        front.until(lambda: front.drained)


def test_what_is_in_the_channel_is_taken_before_a_relay_drains() -> None:
    with listening() as door, relaying(plan_of(listener_of(service_of(door)))) as front:
        front.give(SESSION)
        front.relay.drain()

        assert len(front.connections) == 1


def test_nonsense_in_the_channel_is_refused_with_an_event(idle: Relaying) -> None:
    idle._sender.send(b"nonsense")

    assert idle.event("system_error")["error_msg"] == "a hand-over was refused"
