"""Live connections after a reload: who may stay, and who is ended."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from handfast.config import Route, Rule, Timeouts
from handfast.handover.message import Passthrough
from handfast.policy.clients import ClientPolicy
from handfast.relay.plan import Plan
from handfast.relay.review import SLICE
from handfast.tls.session import Peer as Who
from handfast.tls.session import Session
from harness.pki import Identity, issue
from unit.policy.authority import certificate, crl, der
from unit.relay.relaying import (
    NO_TIMEOUTS,
    Peer,
    Relaying,
    listener_of,
    listening,
    plan_of,
    relaying,
    service_of,
)

ROOT = issue("root", ca=True)
OTHER_ROOT = issue("other root", ca=True)
GOOD = certificate(ROOT, cn=("good",), serial=1)
BAD = certificate(ROOT, cn=("bad",), serial=2)


def policy(*rules: Rule, anchors: tuple[Identity, ...] = (ROOT,), revoked: int = 0) -> ClientPolicy:
    lists = (crl(ROOT, revoked).public_bytes(Encoding.DER),) if revoked else ()
    roots = tuple(each.certificate.public_bytes(Encoding.DER) for each in anchors)
    return ClientPolicy("require", rules, lists, roots)


def showing(*chain: bytes) -> Callable[[Session], Session]:
    """What makes a session that of a client with these certificates."""

    def change(session: Session) -> Session:
        fields = {name: getattr(session, name) for name in session.__struct_fields__}
        who = Who("192.0.2.1", 4433, certificates=chain)
        return Session(**{**fields, "peer": who})

    return change


GOOD_ONE, BAD_ONE = showing(*der(GOOD)), showing(*der(BAD))


@pytest.fixture
def door() -> Iterator[socket.socket]:
    with listening() as sock:
        yield sock


def plan(
    door: socket.socket,
    clients: ClientPolicy | None = None,
    *,
    generation: int = 1,
    timeouts: Timeouts = NO_TIMEOUTS,
) -> Plan:
    listener = listener_of(service_of(door), clients=clients or policy())
    return plan_of(listener, generation=generation, timeouts=timeouts)


def reload(front: Relaying, new: Plan) -> None:
    front.relay.configure(new)
    front.loop.advance(0.5)


def test_a_client_whose_certificate_was_revoked_is_ended_and_the_others_stay(
    door: socket.socket,
) -> None:
    with relaying(plan(door)) as front:
        bad, good = front.client(BAD_ONE), front.client(GOOD_ONE)
        bad_target, good_target = front.target(door), front.target(door)

        reload(front, plan(door, policy(revoked=2), generation=2))

        with pytest.raises(Exception, match="certificate_revoked"):
            bad.wait_for_the_end()
        bad_target.wait_for_the_end()
        assert bad_target.was_reset
        good.write(b"still here")
        assert good_target.receive(10) == b"still here"
        denied = front.event("auth", subevent="mtls", outcome="denied")
        assert denied["reason"] == "certificate_revoked"
        assert denied["alert"] == "certificate_revoked sent"
        assert denied["client_cert_subject"] == "CN=bad"
        assert denied["client_ip"] == "192.0.2.1"
        ended = front.event(subevent="client_disconnect")
        assert ended["error_msg"] == f"no longer allowed: {denied['error_msg']}"


def test_a_rule_that_no_longer_lets_a_client_in_ends_it(door: socket.socket) -> None:
    with relaying(plan(door)) as front:
        front.client(BAD_ONE)
        front.client(GOOD_ONE)

        deny = Rule(allow=False, fields=(("cn", ("bad",)),))
        reload(front, plan(door, policy(deny, Rule(allow=True)), generation=2))

        assert len(front.connections) == 1
        assert front.event("auth", outcome="denied")["reason"] == "rule_denied"


def test_a_client_whose_anchor_was_taken_away_is_ended(door: socket.socket) -> None:
    with relaying(plan(door)) as front:
        front.client(GOOD_ONE)

        reload(front, plan(door, policy(anchors=(OTHER_ROOT,)), generation=2))

        assert not front.connections
        assert front.event("auth", outcome="denied")["reason"] == "untrusted"


def test_a_resumed_client_of_whom_the_leaf_alone_is_known_stays_while_its_anchors_do(
    door: socket.socket,
) -> None:
    middle = issue("middle", ROOT, ca=True)
    resumed = showing(*der(certificate(middle)))
    with relaying(plan(door)) as front:
        front.client(resumed)

        reload(front, plan(door, policy(anchors=(ROOT, OTHER_ROOT)), generation=2))
        assert len(front.connections) == 1

        reload(front, plan(door, policy(anchors=(OTHER_ROOT,)), generation=3))
        assert not front.connections


def test_a_client_without_a_certificate_is_ended_when_one_is_required(
    door: socket.socket,
) -> None:
    with relaying(plan(door, ClientPolicy())) as front:
        front.client()

        reload(front, plan(door, generation=2))

        assert not front.connections
        assert front.event("auth", outcome="denied")["reason"] == "no_certificate"


def test_connections_of_a_listener_that_is_gone_are_ended(door: socket.socket) -> None:
    with relaying(plan(door, ClientPolicy())) as front:
        client = front.client()
        target = front.target(door)

        reload(front, plan_of(generation=2))

        client.wait_for_the_end()
        target.wait_for_the_end()
        ended = front.event(subevent="client_disconnect")
        assert ended["error_msg"] == "its listener is no longer configured"


def test_a_connection_that_still_looks_for_its_target_is_checked_too(door: socket.socket) -> None:
    with relaying(plan(door)) as front:
        client = front.client(BAD_ONE)

        front.relay.configure(plan(door, policy(revoked=2), generation=2))
        front.loop.advance(0.5)

        with pytest.raises(Exception, match="certificate_revoked"):
            client.wait_for_the_end()


def test_a_connection_that_is_passed_through_showed_us_no_certificate_and_stays(
    door: socket.socket,
) -> None:
    route = Route(passthrough=True, service=service_of(door))
    with relaying(plan_of(listener_of(None, route))) as front:
        client = Peer(front, front.give(Passthrough(Who("192.0.2.1", 4433), b"hello")))
        target = front.target(door)

        reload(front, plan_of(listener_of(None, route, clients=policy()), generation=2))
        client.send_all(b" again")

        assert target.receive(11) == b"hello again"


def test_a_client_that_was_let_in_by_the_old_rules_is_checked_on_arrival(
    door: socket.socket,
) -> None:
    with relaying(plan(door, policy(revoked=2), generation=2)) as front:
        late = front.client(BAD_ONE, generation=1)
        front.client(GOOD_ONE, generation=1)

        with pytest.raises(Exception, match="certificate_revoked"):
            late.wait_for_the_end()
        assert len(front.connections) == 1


def test_new_timeouts_hold_for_live_connections(door: socket.socket) -> None:
    with relaying(plan(door, ClientPolicy())) as front:
        front.client()
        front.target(door)
        front.until(lambda: front.events(subevent="server_connect"))

        reload(front, plan(door, ClientPolicy(), generation=2, timeouts=Timeouts(idle=10)))
        assert front.connections
        front.loop.advance(10)

        assert not front.connections
        assert front.event(subevent="client_disconnect")["error_msg"] == "idle for 10 s"


def test_the_check_is_made_in_slices_so_that_traffic_goes_on(door: socket.socket) -> None:
    count = SLICE + 30
    with relaying(plan(door, ClientPolicy())) as front:
        for _ in range(count):
            front.client()

        front.relay.configure(plan(door, generation=2))
        front.loop.advance(0)
        assert 30 <= len(front.connections) < count

        front.loop.advance(1)
        assert not front.connections


def test_a_reload_in_the_middle_of_a_check_loses_nobody(door: socket.socket) -> None:
    """The second generation has the anchors of the first, but not everybody was checked by it."""
    count = SLICE + 30
    with relaying(plan(door)) as front:
        for _ in range(count):
            front.client(GOOD_ONE)

        front.relay.configure(plan(door, policy(anchors=(OTHER_ROOT,)), generation=2))
        front.loop.advance(0)
        assert front.connections
        reload(front, plan(door, policy(anchors=(OTHER_ROOT,)), generation=3))

        assert not front.connections
