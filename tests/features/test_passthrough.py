"""Clients whose TLS is the target's: found by the name in their first message, and not opened."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from harness.backends import Backend, over_tls, server_context
from harness.clients import connect, echoes, read_to_end, receive, trusting
from harness.homes import TIMEOUT
from harness.pki import Identity, issue
from harness.streams import MemoryClient, random_bytes
from harness.target import accepted, silent_target, target_of

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Certificates
    from features.conftest import Start, Targets

NAME = "inside.example"


@pytest.fixture
def identity() -> Identity:
    """The target's own certificate, of a CA that handfast knows nothing of."""
    return issue(NAME, issue("inside root", ca=True))


@pytest.fixture
def inside(identity: Identity) -> ssl.SSLContext:
    """A client that trusts the target's own CA only."""
    assert identity.issuer is not None
    return ssl.create_default_context(cadata=identity.issuer.pem().decode())


@pytest.fixture
def target(targets: Targets, identity: Identity, tmp_path: Path) -> Backend:
    """A target that ends TLS itself, and echoes."""
    return targets.run(over_tls(server_context(*identity.write(tmp_path, "inside"))))


def passing(address: str, **listener: Any) -> dict[str, Any]:
    """Give a listener that passes NAME through."""
    return {"routes": [{"sni": NAME, "passthrough": True, "target": address}], **listener}


def test_the_client_sees_the_certificate_of_the_target(
    start: Start, target: Backend, identity: Identity, inside: ssl.SSLContext
) -> None:
    front = start(passing(target.target))

    with connect(front.port(), inside, name=NAME) as client:
        assert client.getpeercert(binary_form=True) == identity.certificate.public_bytes(
            Encoding.DER
        )
        assert echoes(client, random_bytes(300_000))


def test_other_names_of_the_listener_are_terminated(
    start: Start, targets: Targets, target: Backend, context: ssl.SSLContext
) -> None:
    front = start(passing(target.target, target=targets.says("terminated")))

    with connect(front.port(), context) as client:
        assert read_to_end(client) == b"terminated"


def test_a_listener_that_only_passes_through_needs_no_certificate(
    start: Start, target: Backend, inside: ssl.SSLContext
) -> None:
    front = start(passing(target.target, certificates=None))

    with connect(front.port(), inside, name=NAME) as client:
        assert echoes(client)


def test_another_name_is_refused_where_nothing_is_terminated(
    start: Start, target: Backend, context: ssl.SSLContext
) -> None:
    front = start(passing(target.target, certificates=None))

    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        connect(front.port(), context)

    denied = front.wait("auth", outcome="denied")
    assert (denied["reason"], denied["sni"]) == ("unrecognized_name", "localhost")


def test_it_is_told_with_its_name_and_bytes_and_without_an_auth_event(
    start: Start, target: Backend, inside: ssl.SSLContext
) -> None:
    front = start(passing(target.target))

    with connect(front.port(), inside, name=NAME) as client:
        assert echoes(client)

    connected = front.wait("proxy", subevent="client_connect")
    assert connected["sni"] == NAME
    assert "tls_version" not in connected
    ended = front.wait("proxy", subevent="client_disconnect")
    assert int(ended["bytes_in"]) > 300  # a hello alone has more
    assert int(ended["bytes_out"]) > 300
    assert "error_msg" not in ended
    assert not front.events("auth")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_first_message_in_pieces_finds_its_target(
    start: Start, target: Backend, inside: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    front = start(passing(target.target))
    inside.minimum_version = inside.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = inside.wrap_bio(incoming, outgoing, server_hostname=NAME)

    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while tls.version() is None:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    raw.sendall(bytes([byte]))
                incoming.write(raw.recv(65536))

    assert tls.version() == version.name.removeprefix("TLS").replace("_", ".").replace("v", "TLSv")


def test_an_end_is_passed_on_and_the_other_direction_goes_on(
    start: Start, inside: ssl.SSLContext
) -> None:
    with silent_target() as listening:
        front = start(passing(target_of(listening)))
        with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
            client = MemoryClient(raw, inside)
            hello = hello_for(inside)
            raw.sendall(hello)
            with accepted(listening) as connection:
                assert receive(connection, len(hello)) == hello
                raw.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""
                connection.sendall(b"still here")
                assert receive(client.sock, 10) == b"still here"


def hello_for(context: ssl.SSLContext) -> bytes:
    """Give the first message of a client that asks for NAME."""
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_reset_of_the_target_is_a_reset_for_the_client(
    start: Start, inside: ssl.SSLContext
) -> None:
    with silent_target() as listening:
        front = start(passing(target_of(listening)))
        with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
            hello = hello_for(inside)
            raw.sendall(hello)
            with accepted(listening) as connection:
                receive(connection, len(hello))
                linger = (1).to_bytes(4, "little") + bytes(4)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            with pytest.raises(ConnectionResetError):
                raw.recv(1)

    front.wait("proxy", subevent="server_disconnect")


def test_a_client_that_says_no_name_in_time_is_ended(start: Start, target: Backend) -> None:
    front = start(passing(target.target), handshake_timeout="300ms")

    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert read_to_end(raw) == b""

    assert front.wait("auth", outcome="failed")["reason"] == "timeout"


def test_what_is_no_tls_is_denied(start: Start, target: Backend) -> None:
    front = start(passing(target.target))

    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: inside.example\r\n\r\n")
        assert len(read_to_end(raw)) == 7  # an alert

    assert front.wait("auth", outcome="denied")["reason"] in {"http_request", "not_tls"}


def test_a_reload_leaves_it_alone_and_sends_the_next_one_elsewhere(
    start: Start, targets: Targets, target: Backend, inside: ssl.SSLContext, identity: Identity,
    tmp_path: Path,
) -> None:  # fmt: skip
    serving = server_context(*identity.write(tmp_path, "other"))
    other = targets.run(over_tls(serving, lambda tls: tls.sendall(b"other")))
    front = start(passing(target.target))

    with connect(front.port(), inside, name=NAME) as client:
        assert echoes(client)
        front.reloaded(**passing(other.target))
        with connect(front.port(), inside, name=NAME) as later:
            assert read_to_end(later) == b"other"
        assert echoes(client)


def test_a_client_that_is_terminated_cannot_ask_for_the_target_of_a_route_that_passes_through(
    start: Start, targets: Targets, target: Backend, certificates: Certificates
) -> None:
    front = start(passing(target.target, target=targets.says("terminated")))

    context = trusting(certificates.ca)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(front.port(), context, name=NAME)  # it meets the target itself
