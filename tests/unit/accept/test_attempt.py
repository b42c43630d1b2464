"""Attempts to connect, one by one, between real sockets."""

from __future__ import annotations

import resource
import socket

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from conftest import Certificates
from handfast.config import Limits, Route, Rule, Service, Target, TcpAddress
from handfast.handover.message import Handover, Passthrough
from handfast.policy.clients import ClientPolicy, Clients
from handfast.tls.openssl import OpenSSLEngine
from handfast.tls.session import Session
from unit.accept.accepting import HANDSHAKE_SECONDS, LOCAL, Accepting, accepting
from unit.tls.engines import Client, credential
from unit.tls.sessions import End

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n"
PROXIES = ("127.0.0.0/8",)
SERVICE = Service(targets=(Target(address=TcpAddress(host="192.0.2.9", port=1)),))
THROUGH = Route(sni=("db.example.com",), passthrough=True, service=SERVICE)


@pytest.fixture(scope="module")
def engine(certificates: Certificates) -> OpenSSLEngine:
    return OpenSSLEngine((credential(certificates.server),), alpn=("h2", "http/1.1"))


def session_of(handover: Handover) -> Session:
    assert isinstance(handover.session, Session)
    return handover.session


def fill(front: Accepting, relay: int = 0) -> None:
    """Fill a relay's channel to the brim."""
    sender = front.channels[relay][0]
    try:
        while sender.send(b"full"):
            pass
    except BlockingIOError:
        pass


def empty(front: Accepting, relay: int = 0) -> None:
    receiver = front.channels[relay][1]
    try:
        while receiver.recv(4) == b"full":
            pass
    except BlockingIOError:
        pass


# The hand-over


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_session_goes_to_a_relay_with_its_socket(engine: OpenSSLEngine, step: int) -> None:
    with accepting(engine) as front:
        client = front.client(Client(sni=b"localhost", alpn=(b"h2",)))
        client.begin(step=step)
        client.until(lambda: client.tls.done)

        handover, sock = front.taken()

        session = session_of(handover)
        assert (handover.listener, handover.generation) == (4, 7)
        assert (session.peer.address, session.peer.port) == client.sock.getsockname()
        assert (session.peer.sni, session.peer.alpn) == ("localhost", "h2")
        sock.sendall(End(session).seal(b"from the relay"))
        client.until(lambda: client.tls.received == b"from the relay")
        granted = front.event(outcome="granted")
        assert (granted["sni"], granted["listen_port"]) == ("localhost", "443")
        assert front.nothing_is_held()


def test_data_behind_the_last_flight_goes_along(engine: OpenSSLEngine) -> None:
    with accepting(engine) as front:
        client = front.client()
        client.begin()

        def answered() -> bool:
            try:
                data = client.sock.recv(1 << 16)
            except BlockingIOError:
                return False
            flight = client.tls.feed(data)
            if client.tls.done:
                client.sock.sendall(flight + client.tls.seal(b"early"))
            return client.tls.done

        front.until(answered)

        session = session_of(front.taken()[0])
        assert len(session.unread) == 5 + len(b"early") + 1 + 16


def test_connections_go_to_the_relays_in_turn(engine: OpenSSLEngine) -> None:
    with accepting(engine, relays=2) as front:
        ports = set()
        for _ in range(2):
            client = front.client()
            client.shake_hands()
            ports.add(client.sock.getsockname()[1])

        found = {session_of(front.taken(relay)[0]).peer.port for relay in (0, 1)}
        assert found == ports


def test_a_relay_without_room_is_passed_over(engine: OpenSSLEngine) -> None:
    with accepting(engine, relays=2) as front:
        fill(front, 0)
        for _ in range(2):
            front.client().shake_hands()

        for _ in range(2):
            assert front.taken(1)


def test_sessions_wait_while_no_relay_has_room_and_no_more_are_accepted(
    engine: OpenSSLEngine,
) -> None:
    with accepting(engine) as front:
        fill(front)
        first = front.client()
        first.shake_hands()
        front.event(outcome="granted")
        second = front.client()
        second.begin()
        for _ in range(5):
            front.loop.turn()
        assert not front.acceptor.attempts

        empty(front)

        port = first.sock.getsockname()[1]
        assert session_of(front.taken()[0]).peer.port == port
        second.until(lambda: second.tls.done)
        assert front.taken()


# Failures


def test_a_client_that_goes_without_a_word_is_told_in_the_log(engine: OpenSSLEngine) -> None:
    with accepting(engine) as front:
        sock = front.connect()
        front.until(lambda: front.acceptor.attempts)
        sock.close()

        event = front.event(outcome="failed")

        assert (event["reason"], event["error_msg"]) == ("eof", "closed before the first byte")
        assert front.nothing_is_held()


def test_a_reset_in_the_handshake_ends_the_attempt(engine: OpenSSLEngine) -> None:
    with accepting(engine) as front:
        client = front.client()
        client.begin()
        client.until(lambda: front.acceptor.attempts)
        client.reset()

        event = front.event(outcome="failed")

        assert event["reason"] in ("reset", "eof")
        assert front.nothing_is_held()


def test_a_silent_client_is_given_up_after_the_timeout(engine: OpenSSLEngine) -> None:
    with accepting(engine) as front:
        client = front.client()
        front.until(lambda: front.acceptor.attempts)

        front.loop.advance(HANDSHAKE_SECONDS - 1.0)
        assert front.acceptor.attempts
        front.loop.advance(2.0)

        assert front.event(outcome="failed")["reason"] == "timeout"
        client.wait_for_the_end()
        assert front.nothing_is_held()


def test_a_client_that_is_refused_gets_its_alert_and_the_end(engine: OpenSSLEngine) -> None:
    with accepting(engine) as front:
        client = front.client(Client(alpn=(b"smtp",)))
        client.begin()

        client.wait_for_the_end()

        assert "no application protocol" in client.tls.error
        assert not client.was_reset
        event = front.event(outcome="denied")
        assert event["alert"] == "no_application_protocol sent"
        assert front.nothing_is_held()


def test_garbage_gets_an_alert_and_is_counted(engine: OpenSSLEngine) -> None:
    with accepting(engine) as front:
        sock = front.connect()
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

        assert front.event()["outcome"] == "denied"
        assert sock.recv(100)[:1] == b"\x15"
        assert front.acceptor.counters.handshakes_denied == 1


def test_whom_the_rules_refuse_gets_an_alert_under_the_sessions_keys(
    certificates: Certificates,
) -> None:
    root = certificates.root
    rules = (Rule(allow=False, fields=(("cn", ("mallory",)),)), Rule(allow=True))
    anchors = (root.certificate.public_bytes(Encoding.DER),)
    policy = ClientPolicy("require", rules, (), anchors)
    strict = OpenSSLEngine(
        (credential(certificates.server),), trusted=(root.certificate,), require=True
    )
    with accepting(strict, clients=Clients(policy)) as front:
        alice = front.client(Client(identity=certificates.client("alice")))
        alice.shake_hands()
        assert front.taken()
        mallory = front.client(Client(identity=certificates.client("mallory")))
        mallory.begin()

        mallory.wait_for_the_end()

        assert "access denied" in mallory.tls.error
        event = front.event(outcome="denied", subevent="mtls")
        assert event["reason"] == "rule_denied"
        assert event["client_cert_subject"] == "CN=mallory"
        assert front.nothing_is_held()


def test_attempts_can_be_ended_for_a_reason_of_ours(engine: OpenSSLEngine) -> None:
    with accepting(engine) as front:
        client = front.client()
        front.until(lambda: front.acceptor.attempts)

        front.acceptor.end_all("handfast is stopping")

        event = front.event(outcome="failed")
        assert (event["reason"], event["error_msg"]) == ("cancelled", "handfast is stopping")
        client.wait_for_the_end()


# Limits


def test_a_client_too_many_is_turned_away_with_an_alert_and_told_once_a_second(
    engine: OpenSSLEngine,
) -> None:
    with accepting(engine, limits=Limits(connections_per_source=1)) as front:
        first = front.connect()
        front.until(lambda: front.acceptor.attempts)
        for _ in range(3):
            client = front.client()
            client.begin()
            client.wait_for_the_end()
            assert "internal error" in client.tls.error

        front.loop.advance(1.0)

        (event,) = front.events("refused")
        assert (event["reason"], event["count"], event["client_ip"]) == (
            "source_connections", "3", LOCAL,
        )  # fmt: skip
        first.close()
        front.until(front.nothing_is_held)
        again = front.client()
        again.shake_hands()


def test_a_listener_has_a_limit_of_its_own(engine: OpenSSLEngine) -> None:
    with accepting(engine, max_connections=1) as front:
        front.connect()
        front.until(lambda: front.acceptor.attempts)
        client = front.client()
        client.begin()

        client.wait_for_the_end()
        front.loop.advance(1.0)

        assert front.events("refused")[0]["reason"] == "listener_connections"


def test_without_descriptors_accepting_pauses_and_recovers(engine: OpenSSLEngine) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with accepting(engine) as front:
        client = front.client()
        client.begin()
        spare = front.connect()
        lowest = spare.fileno()
        spare.detach()
        socket.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            front.until(lambda: front.events("accepting"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        paused = front.event("accepting")

        front.loop.advance(0.2)
        client.until(lambda: client.tls.done)

        assert (paused["state"], paused["error_desc"]) == ("paused", "Too many open files")
        front.event("accepting", state="resumed")


# The end


def test_a_drained_acceptor_accepts_nobody_and_ends_behind_its_last_handshake(
    engine: OpenSSLEngine,
) -> None:
    with accepting(engine) as front:
        client = front.client()
        front.until(lambda: front.acceptor.attempts)

        front.acceptor.drain()

        assert not front.drained
        assert front.listening.fileno() == -1
        client.shake_hands()
        assert front.taken()
        assert front.drained


def test_an_idle_acceptor_ends_at_once(engine: OpenSSLEngine) -> None:
    with accepting(engine) as front:
        front.acceptor.drain()

        assert front.drained


# PROXY headers


@pytest.mark.parametrize("step", [1, 50, 1 << 20])
def test_a_proxy_tells_who_the_client_is(engine: OpenSSLEngine, step: int) -> None:
    with accepting(engine, proxies=PROXIES) as front:
        client = front.client()
        client.begin(before=V1, step=step)
        client.until(lambda: client.tls.done)

        peer = session_of(front.taken()[0]).peer

        assert (peer.address, peer.port) == ("192.0.2.1", 4711)
        assert peer.dialled == ("198.51.100.1", 443)
        assert front.event(outcome="granted")["client_ip"] == "192.0.2.1"


def test_a_proxy_may_speak_for_itself(engine: OpenSSLEngine) -> None:
    with accepting(engine, proxies=PROXIES) as front:
        client = front.client()
        client.begin(before=b"PROXY UNKNOWN\r\n")
        client.until(lambda: client.tls.done)

        peer = session_of(front.taken()[0]).peer

        assert (peer.address, peer.port) == client.sock.getsockname()
        assert peer.dialled is None


def test_a_network_that_is_not_listed_sends_no_header(engine: OpenSSLEngine) -> None:
    with accepting(engine, proxies=("192.0.2.0/24",)) as front:
        client = front.client()
        client.begin(before=V1)

        assert front.event(outcome="denied")["client_ip"] == LOCAL


def test_a_listed_network_has_to_send_a_header(engine: OpenSSLEngine) -> None:
    with accepting(engine, proxies=PROXIES) as front:
        client = front.client()
        client.begin()

        client.wait_for_the_end()

        assert front.event(outcome="denied")["reason"] == "bad_proxy_header"
        assert client.received == b""
        assert front.nothing_is_held()


def test_limits_are_for_the_client_and_not_for_its_proxy(engine: OpenSSLEngine) -> None:
    with accepting(engine, proxies=PROXIES, limits=Limits(connections_per_source=1)) as front:
        first = front.client()
        first.sock.sendall(V1)
        front.until(lambda: front.census.connections() == 1)
        second = front.client()
        second.begin(before=V1.replace(b"192.0.2.1", b"192.0.2.2"))
        second.until(lambda: second.tls.done)
        again = front.client()
        again.begin(before=V1.replace(b"4711", b"4712"))

        again.wait_for_the_end()
        front.loop.advance(1.0)

        (event,) = front.events("refused")
        assert (event["reason"], event["client_ip"]) == ("source_connections", "192.0.2.1")


# Passing through


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize("before", [b"", V1], ids=["directly", "behind a proxy"])
def test_a_client_is_passed_through_with_every_byte_that_was_read(
    engine: OpenSSLEngine, before: bytes, step: int
) -> None:
    proxies = PROXIES if before else ()
    with accepting(engine, routes=(THROUGH,), proxies=proxies) as front:
        tls = Client(sni=b"DB.example.com")
        hello = tls.feed(b"")
        sock = front.connect()
        for start in range(0, len(before + hello), step):
            sock.sendall((before + hello)[start : start + step])
            front.glance()

        handover, relayed = front.taken()

        through = handover.session
        assert isinstance(through, Passthrough)
        assert through.unread == hello
        assert through.peer.sni == "DB.example.com"
        assert through.peer.address == ("192.0.2.1" if before else LOCAL)
        assert (through.peer.dialled is not None) == bool(before)
        relayed.sendall(b"from the target")
        assert sock.recv(100) == b"from the target"
        assert front.nothing_is_held()


def test_other_names_are_ended_here(engine: OpenSSLEngine) -> None:
    with accepting(engine, routes=(THROUGH,)) as front:
        client = front.client(Client(sni=b"localhost"))
        client.shake_hands()

        assert session_of(front.taken()[0]).peer.sni == "localhost"


def test_without_a_certificate_other_names_are_unknown() -> None:
    with accepting(None, routes=(THROUGH,)) as front:
        client = front.client(Client(sni=b"other.example.com"))
        client.begin()

        client.wait_for_the_end()

        assert "unrecognized name" in client.tls.error
        event = front.event(outcome="denied")
        assert (event["reason"], event["alert"]) == ("unrecognized_name", "unrecognized_name sent")
        assert event["sni"] == "other.example.com"
