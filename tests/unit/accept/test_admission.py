from __future__ import annotations

import pytest

from handfast.accept.admission import Admission, Refusal, Refusals
from handfast.config import Limits
from handfast.observe.events import Level
from handfast.transport.census import Census, Column

IP = "192.0.2.1"
OTHER = "192.0.2.2"


def two_acceptors(limits: Limits) -> tuple[Census, Admission, Admission]:
    census = Census(2)
    census.set_prefixes(limits.source_prefix_v4, limits.source_prefix_v6)
    first, second = (Admission(Column(census, number), limits) for number in range(2))
    return census, first, second


def admitted(outcome: int | Refusal) -> int:
    assert not isinstance(outcome, Refusal), outcome
    return outcome


def test_without_limits_everybody_is_let_in_and_counted() -> None:
    census, one, other = two_acceptors(Limits())
    for _ in range(50):
        admitted(one.admit(0, 0, IP, 1.0))
        place = admitted(other.admit(0, 0, IP, 1.0))

    assert census.connections() == census.handshakes() == census.of_source(place) == 100


def test_connections_are_limited_over_all_acceptors_until_one_ends() -> None:
    _, one, other = two_acceptors(Limits(connections=2))
    place = admitted(one.admit(0, 0, IP, 1.0))
    admitted(other.admit(1, 0, OTHER, 1.0))

    assert one.admit(2, 0, "192.0.2.3", 1.0) is Refusal.CONNECTIONS
    one.release(place)
    admitted(other.admit(2, 0, "192.0.2.3", 1.0))


def test_what_relays_hold_counts_for_the_connections_but_not_for_the_handshakes() -> None:
    census, one, _ = two_acceptors(Limits(connections=2, handshakes=1))
    relay = Column(census, 1)
    one.release(admitted(one.admit(0, 0, IP, 1.0)))
    place = relay.enter(0, IP)
    relay.enter(0, IP)

    assert one.admit(0, 0, OTHER, 1.0) is Refusal.CONNECTIONS
    relay.leave(place)
    admitted(one.admit(0, 0, OTHER, 1.0))


def test_handshakes_in_progress_are_limited_over_all_acceptors() -> None:
    _, one, other = two_acceptors(Limits(handshakes=2))
    place = admitted(one.admit(0, 0, IP, 1.0))
    admitted(one.admit(0, 0, IP, 1.0))

    assert other.admit(0, 0, OTHER, 1.0) is Refusal.HANDSHAKES
    one.release(place)
    admitted(other.admit(0, 0, OTHER, 1.0))


def test_the_limit_of_a_listener_is_its_own() -> None:
    _, one, other = two_acceptors(Limits())
    admitted(one.admit(4, 1, IP, 1.0))

    assert other.admit(4, 1, OTHER, 1.0) is Refusal.LISTENER
    admitted(other.admit(5, 1, OTHER, 1.0))


def test_a_source_over_its_connections_is_refused_and_another_is_not() -> None:
    _, one, other = two_acceptors(Limits(connections_per_source=2))
    admitted(one.admit(0, 0, IP, 1.0))
    admitted(other.admit(1, 0, IP, 1.0))

    assert one.admit(0, 0, IP, 1.0) is Refusal.SOURCE
    admitted(one.admit(0, 0, OTHER, 1.0))


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_a_source_is_a_host_of_ipv4_and_a_network_of_ipv6(
    first: str, second: str, *, refused: bool
) -> None:
    _, one, _ = two_acceptors(Limits(connections_per_source=1))
    admitted(one.admit(0, 0, first, 1.0))

    assert (one.admit(0, 0, second, 1.0) is Refusal.SOURCE) == refused


def test_a_source_may_be_a_larger_network() -> None:
    limits = Limits(connections_per_source=1, source_prefix_v4=24, source_prefix_v6=48)
    _, one, _ = two_acceptors(limits)
    admitted(one.admit(0, 0, "192.0.2.1", 1.0))
    admitted(one.admit(0, 0, "2001:db8:0:1::1", 1.0))

    assert one.admit(0, 0, "192.0.2.200", 1.0) is Refusal.SOURCE
    assert one.admit(0, 0, "2001:db8:0:2::1", 1.0) is Refusal.SOURCE
    admitted(one.admit(0, 0, "192.0.3.1", 1.0))


def test_a_source_begins_so_many_handshakes_in_a_second_and_no_more() -> None:
    _, one, other = two_acceptors(Limits(handshake_rate_per_source=3))
    for acceptor in (one, other, one):
        acceptor.release(admitted(acceptor.admit(0, 0, IP, 10.2)))

    assert other.admit(0, 0, IP, 10.9) is Refusal.RATE
    admitted(other.admit(0, 0, OTHER, 10.9))
    assert one.admit(0, 0, IP, 11.1) is Refusal.RATE
    admitted(one.admit(0, 0, IP, 11.4))


def test_refused_handshakes_do_not_keep_a_source_out() -> None:
    _, one, _ = two_acceptors(Limits(handshake_rate_per_source=1))
    admitted(one.admit(0, 0, IP, 10.0))
    for tenth in range(1, 20):
        assert one.admit(0, 0, IP, 10.0 + tenth / 10) is Refusal.RATE

    admitted(one.admit(0, 0, IP, 12.0))


def test_clients_of_a_unix_socket_are_of_no_source() -> None:
    limits = Limits(connections_per_source=1, handshake_rate_per_source=1, connections=3)
    _, one, _ = two_acceptors(limits)
    for _ in range(3):
        admitted(one.admit(0, 0, "", 1.0))

    assert one.admit(0, 0, "", 1.0) is Refusal.CONNECTIONS


def test_a_refused_connection_is_not_counted() -> None:
    census, one, _ = two_acceptors(Limits(connections_per_source=1))
    place = admitted(one.admit(0, 0, IP, 1.0))
    for _ in range(3):
        one.admit(0, 0, IP, 1.0)

    assert census.connections() == census.handshakes() == census.of_source(place) == 1


def test_limits_may_be_replaced_while_connections_are_held() -> None:
    _, one, _ = two_acceptors(Limits())
    places = [admitted(one.admit(0, 0, IP, 1.0)) for _ in range(3)]
    one.limits = Limits(connections_per_source=3)

    assert one.admit(0, 0, IP, 1.0) is Refusal.SOURCE
    one.release(places[0])
    admitted(one.admit(0, 0, IP, 1.0))


def test_refusals_are_told_once_for_each_reason_and_listener_with_their_count() -> None:
    refusals = Refusals()
    for client in (IP, OTHER, OTHER):
        refusals.add(Refusal.RATE, "198.51.100.1", 443, client)
    refusals.add(Refusal.RATE, "198.51.100.1", 8443, OTHER)
    refusals.add(Refusal.CONNECTIONS, "/run/front.sock", 0, "")

    first, second, third = refusals.take()

    assert (first.reason, first.listen_port, first.count) == ("source_rate", 443, 3)
    assert first.client_ip == IP
    assert (second.reason, second.listen_port, second.count) == ("source_rate", 8443, 1)
    assert (third.reason, third.listen_ip, third.listen_port) == (
        "connections",
        "/run/front.sock",
        None,
    )
    assert refusals.take() == []


def test_a_limit_of_a_source_is_not_the_operators_concern_and_the_others_are() -> None:
    refusals = Refusals()
    for refusal in Refusal:
        refusals.add(refusal, "198.51.100.1", 443, IP)

    levels = {event.reason: event.level for event in refusals.take()}

    assert levels == {
        "connections": Level.WARN,
        "listener_connections": Level.WARN,
        "handshakes": Level.WARN,
        "source_connections": Level.INFO,
        "source_rate": Level.INFO,
    }
