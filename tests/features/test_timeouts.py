"""How long handfast waits: for a handshake, for life, for an end."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from harness.clients import connect, echoes, read_to_end
from harness.homes import TIMEOUT
from harness.instance import wait_for
from harness.streams import MemoryClient, memory_client
from harness.target import accepted, silent_target, target_of

if TYPE_CHECKING:
    from conftest import Certificates
    from features.conftest import Start, Targets


def test_a_handshake_that_trickles_is_ended_in_time(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()}, handshake_timeout="500ms")
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = iter(outgoing.read()[:-1])

    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        raw.settimeout(0.05)

        def is_over() -> bool:
            try:
                raw.sendall(bytes([next(hello)]))
                return raw.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_for(is_over, "the connection ends though bytes come")

    failed = front.wait("auth", outcome="failed")
    assert failed["reason"] == "timeout"
    assert 500 <= float(failed["duration_ms"]) < 2000


def test_a_proxy_that_sends_no_header_is_ended_in_time(start: Start, targets: Targets) -> None:
    listener = {"target": targets.echo(), "accept_proxy": ["127.0.0.0/8"]}
    front = start(listener, handshake_timeout="300ms")

    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        raw.sendall(b"PROXY TCP4 ")
        assert read_to_end(raw) == b""

    assert front.wait("auth", outcome="failed")["reason"] == "timeout"


def test_the_handshake_timeout_does_not_count_for_the_connection(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()}, handshake_timeout="300ms")

    with connect(front.port(), context) as client:
        assert echoes(client)
        client.settimeout(0.8)
        with pytest.raises(TimeoutError):
            client.recv(1)  # it is longer than that, and nothing ends


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_connection_ends_in_order_when_its_lifetime_is_over_though_it_is_busy(
    start: Start, targets: Targets, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    front = start({"target": targets.echo()}, lifetime_timeout="700ms")

    with memory_client(front.port(), certificates.ca, version) as client:

        def ended() -> bool:
            client.write(b"x")
            try:
                client.flush()
                return client.read(1) == b""  # close_notify
            except (ConnectionError, ssl.SSLEOFError):
                return True

        wait_for(ended, "the connection ends though it is busy")

    told = front.wait("proxy", subevent="client_disconnect")
    assert told["error_msg"] == "open for 0.7 s, which is the limit"
    assert 700 <= float(told["duration_ms"]) < 3000


def test_a_connection_that_is_used_is_not_idle(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()}, idle_timeout="1s")

    with connect(front.port(), context) as client:
        client.settimeout(0.4)
        for _ in range(4):  # 1.6 s in all
            assert echoes(client)
            with pytest.raises(TimeoutError):
                client.recv(1)
        assert echoes(client)


def test_what_only_the_target_sends_is_use_too(start: Start, context: ssl.SSLContext) -> None:
    with silent_target() as listening:
        front = start({"target": target_of(listening)}, idle_timeout="1s")
        with connect(front.port(), context) as client, accepted(listening) as connection:
            client.settimeout(0.4)
            for _ in range(4):
                connection.sendall(b"x")
                assert client.recv(1) == b"x"
                with pytest.raises(TimeoutError):
                    client.recv(1)


def test_idle_timeout_zero_is_never(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()}, idle_timeout=0)

    with connect(front.port(), context) as client:
        assert echoes(client)
        client.settimeout(1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(TIMEOUT)
        assert echoes(client)


def test_a_connection_that_is_passed_through_ends_with_a_reset_when_it_is_idle(
    start: Start, targets: Targets
) -> None:
    route = {"sni": "inside.example", "passthrough": True, "target": targets.echo()}
    front = start({"certificates": None, "routes": [route]}, idle_timeout="300ms")
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="inside.example"
    )
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()

    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        assert echoes(raw, outgoing.read())
        with pytest.raises(ConnectionResetError):
            raw.recv(1)

    assert front.wait("proxy", subevent="client_disconnect")["error_msg"] == "idle for 0.3 s"


def test_a_target_that_closed_is_waited_for_no_longer_than_half_closed(
    start: Start, certificates: Certificates
) -> None:
    with silent_target() as listening:
        front = start({"target": target_of(listening)}, half_closed_timeout="300ms")
        with (
            memory_client(front.port(), certificates.ca) as client,
            accepted(listening) as connection,
        ):
            connection.shutdown(socket.SHUT_WR)
            assert client.read() == b""
            assert is_reset(connection)

    told = front.wait("proxy", subevent="client_disconnect")
    assert told["error_msg"] == "half-closed too long"


def is_reset(connection: socket.socket) -> bool:
    try:
        connection.recv(1)
    except ConnectionResetError:
        return True
    return False


def test_a_target_that_does_not_finish_its_handshake_is_given_up_after_the_connect_timeout(
    start: Start, context: ssl.SSLContext
) -> None:
    # The target accepts and says nothing: its handshake is part of connecting to it.
    with silent_target() as listening:
        tls = {"server-name": "localhost"}
        target = {"address": target_of(listening), "tls": tls}
        front = start({"targets": [target]}, connect_timeout="400ms")
        with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
            client = MemoryClient(raw, context)
            client.handshake()
            with accepted(listening), pytest.raises(ssl.SSLError, match=r"(?i)internal.error"):
                client.read()

    told = front.wait("proxy", subevent="server_connect")
    assert told["error_msg"] == "no TLS session with the target in its time"
