"""Targets that speak TLS or want to be told who the client is."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from handfast.config import Route, Service, TargetTls, Timeouts
from handfast.handover.message import Passthrough
from handfast.relay.plan import Plan
from handfast.tls.session import Peer as Who
from handfast.transport.proxy_protocol.parse import parse
from unit.relay.relaying import (
    NO_TIMEOUTS,
    Relaying,
    TlsClient,
    TlsTarget,
    listener_of,
    listening,
    plan_of,
    relaying,
    service_of,
)

if TYPE_CHECKING:
    from conftest import Certificates

CLOSE_NOTIFY = 0
TRUSTED = TargetTls(server_name="localhost", trusted_certs=("ca.pem",))


@pytest.fixture
def door() -> Iterator[socket.socket]:
    with listening() as sock:
        yield sock


def secured(certificates: Certificates, service: Service, timeouts: Timeouts = NO_TIMEOUTS) -> Plan:
    root = certificates.root.certificate.public_bytes(Encoding.DER)
    return plan_of(listener_of(service), timeouts=timeouts, anchors={"ca.pem": (root,)})


@pytest.fixture
def front(certificates: Certificates, door: socket.socket) -> Iterator[Relaying]:
    with relaying(secured(certificates, service_of(door, tls=TRUSTED))) as made:
        yield made


def both(
    front: Relaying, door: socket.socket, certificates: Certificates
) -> tuple[TlsClient, TlsTarget]:
    client = front.client()
    target = front.tls_target(door, certificates.chain, certificates.key)
    target.until(lambda: target.is_ready and front.events(subevent="server_connect"))
    return client, target


def test_megabytes_arrive_both_ways_with_tls_on_both_sides(
    front: Relaying, door: socket.socket, certificates: Certificates
) -> None:
    up, down = os.urandom(3_000_000), os.urandom(3_000_000)
    client, target = both(front, door, certificates)

    for start in range(0, len(up), 1 << 16):
        client.write(up[start : start + (1 << 16)])
        target.look()
    for start in range(0, len(down), 1 << 16):
        target.write(down[start : start + (1 << 16)])
        client.look()

    assert target.receive(len(up)) == up
    assert client.receive(len(down)) == down


def test_the_name_is_asked_for_and_an_address_is_not(
    front: Relaying, door: socket.socket, certificates: Certificates
) -> None:
    asked: list[str | None] = []
    front.client()
    target = front.tls_target(door, certificates.chain, certificates.key)
    target.tls.context.sni_callback = lambda _sock, name, _context: asked.append(name)
    target.until(lambda: target.is_ready)
    by_address = service_of(door, tls=TargetTls(trusted_certs=("ca.pem",)))
    with relaying(secured(certificates, by_address)) as other:
        other.client()
        second = other.tls_target(door, certificates.chain, certificates.key)
        second.tls.context.sni_callback = lambda _sock, name, _context: asked.append(name)
        second.until(lambda: second.is_ready)

    assert asked == ["localhost", None]


def test_what_the_target_says_with_its_last_flight_is_not_lost(
    front: Relaying, door: socket.socket, certificates: Certificates
) -> None:
    client = front.client()
    target = front.tls_target(door, certificates.chain, certificates.key)
    target.until(lambda: target.is_ready)
    target.write(b"220 welcome")

    assert client.receive(11) == b"220 welcome"


def test_close_notify_of_the_target_is_an_orderly_end(
    front: Relaying, door: socket.socket, certificates: Certificates
) -> None:
    client, target = both(front, door, certificates)
    target.write(b"that was all")
    target.close_write()
    assert client.receive(12) == b"that was all"
    client.until(lambda: client.end.reader.closed)
    client.write(b"late words")
    assert target.receive(10) == b"late words"

    client.send_all(client.end.writer.alert(CLOSE_NOTIFY))
    target.until(lambda: target.closed)

    assert "error_msg" not in front.event(subevent="client_disconnect")
    assert "error_msg" not in front.event(subevent="server_disconnect")
    front.until(lambda: not front.connections)


def test_close_notify_of_the_client_is_passed_on_as_close_notify(
    front: Relaying, door: socket.socket, certificates: Certificates
) -> None:
    client, target = both(front, door, certificates)
    client.write(b"question")
    client.send_all(client.end.writer.alert(CLOSE_NOTIFY))
    target.until(lambda: target.closed)

    assert target.receive(8) == b"question"
    assert not target.was_reset


def test_fin_of_the_target_without_close_notify_is_no_orderly_end_for_the_client(
    front: Relaying, door: socket.socket, certificates: Certificates
) -> None:
    client, target = both(front, door, certificates)
    target.write(b"half of it")
    target.finish()

    with pytest.raises(Exception, match="internal_error"):
        client.wait_for_the_end()
    ended = front.event(subevent="server_disconnect")
    assert ended["error_msg"] == "closed without close_notify"


def test_garbage_of_the_target_is_no_orderly_end_for_the_client(
    front: Relaying, door: socket.socket, certificates: Certificates
) -> None:
    client, target = both(front, door, certificates)
    target.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))

    with pytest.raises(Exception, match="internal_error"):
        client.wait_for_the_end()
    assert "authenticate" in front.event(subevent="server_disconnect")["error_msg"]


def test_truncation_by_the_client_is_no_orderly_end_for_the_target(
    front: Relaying, door: socket.socket, certificates: Certificates
) -> None:
    client, target = both(front, door, certificates)
    client.finish()
    target.wait_for_the_end()

    assert target.was_reset
    assert not target.closed


def test_the_end_for_a_reason_of_ours_is_orderly_on_both_sides(
    certificates: Certificates, door: socket.socket
) -> None:
    service = service_of(door, tls=TRUSTED)
    with relaying(secured(certificates, service, Timeouts(idle=0, lifetime=100))) as front:
        client, target = both(front, door, certificates)
        client.write(b"still busy")
        target.receive(10)

        front.loop.advance(101)
        client.until(lambda: client.end.reader.closed)
        target.until(lambda: target.closed)

        ended = front.event(subevent="client_disconnect")
    assert ended["error_msg"] == "open for 100 s, which is the limit"


def refused(front: Relaying) -> dict[str, str]:
    """Wait until the client has been refused, and give the event that says why."""
    front.until(lambda: not front.connections)
    event = front.event(subevent="server_connect")
    assert event["error_msg"].startswith("no TLS session with the target")
    return event


def test_a_target_with_a_certificate_for_another_name_is_refused_and_told_so(
    certificates: Certificates, door: socket.socket
) -> None:
    tls = TargetTls(server_name="other.example.com", trusted_certs=("ca.pem",))
    with relaying(secured(certificates, service_of(door, tls=tls))) as front:
        client = front.client()
        target = front.tls_target(door, certificates.chain, certificates.key)
        target.until(lambda: target.error)

        with pytest.raises(Exception, match="internal_error"):
            client.wait_for_the_end()
        description = front.event(subevent="server_connect")["error_desc"]
    assert target.error == "SSLV3_ALERT_BAD_CERTIFICATE"
    assert description.startswith("the certificate is not for other.example.com but for localhost")


def test_a_target_that_nobody_vouches_for_is_refused(
    certificates: Certificates, door: socket.socket
) -> None:
    stranger = certificates.client().certificate.public_bytes(Encoding.DER)
    plan = plan_of(listener_of(service_of(door, tls=TRUSTED)), anchors={"ca.pem": (stranger,)})
    with relaying(plan) as front:
        front.client()
        target = front.tls_target(door, certificates.chain, certificates.key)
        target.until(lambda: target.error)

        assert "unable to get local issuer certificate" in refused(front)["error_desc"]


def test_without_anything_to_trust_no_target_is_trusted(
    certificates: Certificates, door: socket.socket
) -> None:
    with relaying(plan_of(listener_of(service_of(door, tls=TRUSTED)))) as front:
        front.client()
        target = front.tls_target(door, certificates.chain, certificates.key)
        target.until(lambda: target.error)

        assert "is not trusted" in refused(front)["error_desc"]


def test_a_target_without_tls_is_refused(front: Relaying, door: socket.socket) -> None:
    front.client()
    target = front.target(door)
    target.send_all(b"220 plain text here\r\n")

    assert refused(front)["error_desc"] == "record of unknown type 50"


def test_a_target_that_hangs_up_in_the_handshake_is_refused(
    front: Relaying, door: socket.socket
) -> None:
    front.client()
    target = front.target(door)
    target.receive(5)
    target.finish()

    assert refused(front)["error_desc"] == "closed during the handshake"


def test_a_target_that_is_silent_in_the_handshake_is_given_up_in_time(
    front: Relaying, door: socket.socket
) -> None:
    front.client()
    target = front.target(door)
    target.receive(5)

    front.loop.advance(6)

    event = refused(front)
    assert event["error_msg"] == "no TLS session with the target in its time"
    assert front.events("target", state="down")


def test_the_next_target_takes_over_from_one_that_cannot_prove_itself(
    certificates: Certificates, door: socket.socket
) -> None:
    with listening() as bad:
        service = service_of(bad, door, tls=TRUSTED)
        with relaying(secured(certificates, service)) as front:
            client = front.client()
            wrong = front.target(bad)
            wrong.send_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            target = front.tls_target(door, certificates.chain, certificates.key)
            target.until(lambda: target.is_ready)
            client.write(b"hello")

            assert target.receive(5) == b"hello"


def test_a_client_that_leaves_during_the_handshake_leaves_nothing_behind(
    front: Relaying, door: socket.socket
) -> None:
    front.client()
    target = front.target(door)
    target.receive(5)
    [connection] = front.connections

    connection.end("it is enough")
    target.wait_for_the_end()

    assert target.was_reset
    assert front.census.connections() == 0


def test_a_version_1_header_tells_the_client_and_the_address_that_it_connected_to(
    door: socket.socket,
) -> None:
    with relaying(plan_of(listener_of(service_of(door, send_proxy="v1")))) as front:
        client = front.client()
        client.write(b"data")
        host, port = client.sock.getpeername()
        target = front.target(door)
        line = f"PROXY TCP4 192.0.2.1 {host} 4433 {port}\r\n".encode()

        assert target.receive(len(line) + 4) == line + b"data"


def test_a_header_goes_before_the_targets_own_tls(
    certificates: Certificates, door: socket.socket
) -> None:
    service = service_of(door, tls=TRUSTED, send_proxy="v2")
    with relaying(secured(certificates, service)) as front:
        client = front.client()
        target = front.tls_target(door, certificates.chain, certificates.key)
        start = b""
        front.until(lambda: len(target.sock.recv(4096, socket.MSG_PEEK)) > 300)
        start = target.sock.recv(4096, socket.MSG_PEEK)
        header = parse(start)
        assert header is not None
        assert header.source == ("192.0.2.1", 4433)
        assert header.destination == client.sock.getpeername()
        target.sock.recv(header.length)
        target.until(lambda: target.is_ready)
        client.write(b"data")

        assert target.receive(4) == b"data"


def test_a_passed_through_client_is_introduced_before_its_hello(door: socket.socket) -> None:
    route = Route(passthrough=True, service=service_of(door, send_proxy="v2"))
    who = Who("192.0.2.1", 4433, "db.example.com", dialled=("198.51.100.1", 443))
    with relaying(plan_of(listener_of(None, route))) as front:
        front.give(Passthrough(who, b"hello"))
        target = front.target(door)
        target.until(lambda: target.received.endswith(b"hello"))

        header = parse(target.received)
        assert header is not None
        assert header.destination == ("198.51.100.1", 443)
        assert b"db.example.com" in target.received
        assert target.received[header.length :] == b"hello"
