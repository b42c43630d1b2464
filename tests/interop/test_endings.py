"""How a connection ends: either side first, cut off, or out of time."""

from __future__ import annotations

import socket
import ssl
import struct
from typing import TYPE_CHECKING, Final

import pytest

from harness.backends import Backend
from harness.homes import TIMEOUT
from harness.streams import MemoryClient, memory_client, random_bytes, sha256
from harness.target import accepted, receive_from, silent_target, target_of

if TYPE_CHECKING:
    from conftest import Certificates, Serve

VERSIONS: Final = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def assert_not_in_order(client: MemoryClient) -> None:
    """Check that the client is not told that the stream was complete."""
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        client.read_exactly(1)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_client_still_receives_after_its_close_notify(
    serve: Serve, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    with silent_target() as listening:
        handfast = serve(target_of(listening))
        with (
            memory_client(handfast.port(), certificates.ca, version) as client,
            accepted(listening) as target,
        ):
            client.write(b"question")
            client.close_write()
            assert receive_from(target, 100) == b"question"  # and the end
            target.sendall(b"answer")
            assert client.read_exactly(6) == b"answer"
            target.close()

            assert client.read() == b""
    end = handfast.wait("proxy", subevent="client_disconnect")
    assert "error_msg" not in end
    assert (end["bytes_in"], end["bytes_out"]) == ("8", "6")  # what came after its end, too
    assert "error_msg" not in handfast.wait("proxy", subevent="server_disconnect")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_target_still_receives_after_its_fin(
    serve: Serve, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    with silent_target() as listening:
        handfast = serve(target_of(listening))
        with (
            memory_client(handfast.port(), certificates.ca, version) as client,
            accepted(listening) as target,
        ):
            target.sendall(b"that was all")
            target.shutdown(socket.SHUT_WR)
            assert client.read_exactly(12) == b"that was all"
            assert client.read() == b""
            client.write(b"late words")
            client.flush()
            assert target.recv(100) == b"late words"
            client.close_write()

            assert target.recv(100) == b""
    end = handfast.wait("proxy", subevent="client_disconnect")
    assert "error_msg" not in end


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_written_before_the_end_arrives_before_the_end(
    serve: Serve, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    data = random_bytes(20_000_000)
    with Backend(lambda connection: connection.sendall(data)) as backend:
        handfast = serve(backend.target)
        with memory_client(handfast.port(), certificates.ca, version) as client:
            assert client.exchange(b"", len(data)) == sha256(data)
            assert client.read() == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_ends_without_close_notify_is_reset_at_the_target(
    serve: Serve, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    with silent_target() as listening:
        handfast = serve(target_of(listening))
        with (
            memory_client(handfast.port(), certificates.ca, version) as client,
            accepted(listening) as target,
        ):
            client.write(b"half of it")
            client.flush()
            assert target.recv(100) == b"half of it"
            client.sock.shutdown(socket.SHUT_WR)

            with pytest.raises(ConnectionResetError):
                target.recv(100)
    end = handfast.wait("proxy", subevent="client_disconnect")
    assert end["error_msg"] == "closed without close_notify"


def test_a_client_that_resets_is_reset_at_the_target(
    serve: Serve, certificates: Certificates
) -> None:
    with silent_target() as listening:
        handfast = serve(target_of(listening))
        with (
            memory_client(handfast.port(), certificates.ca) as client,
            accepted(listening) as target,
        ):
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sock.close()

            with pytest.raises(ConnectionResetError):
                target.recv(100)
    assert "error_msg" in handfast.wait("proxy", subevent="client_disconnect")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_target_that_resets_is_no_orderly_end_for_the_client(
    serve: Serve, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    with silent_target() as listening:
        handfast = serve(target_of(listening))
        with (
            memory_client(handfast.port(), certificates.ca, version) as client,
            accepted(listening) as target,
        ):
            target.sendall(b"half of it")
            assert client.read_exactly(10) == b"half of it"
            target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            target.close()

            assert_not_in_order(client)
    end = handfast.wait("proxy", subevent="server_disconnect")
    assert end["error_msg"] == "read from the target failed"


def test_an_idle_connection_is_closed_in_order(serve: Serve, certificates: Certificates) -> None:
    with silent_target() as listening:
        handfast = serve(target_of(listening), extra="idle-timeout: 300ms")
        with (
            memory_client(handfast.port(), certificates.ca) as client,
            accepted(listening) as target,
        ):
            assert client.read() == b""
            assert target.recv(100) == b""
    end = handfast.wait("proxy", subevent="client_disconnect")
    assert end["error_msg"] == "idle for 0.3 s"


@pytest.mark.parametrize("first", ["client", "target"])
def test_a_half_closed_connection_is_ended_after_its_timeout(
    serve: Serve, certificates: Certificates, first: str
) -> None:
    with silent_target() as listening:
        handfast = serve(target_of(listening), extra="half-closed-timeout: 300ms")
        with (
            memory_client(handfast.port(), certificates.ca) as client,
            accepted(listening) as target,
        ):
            if first == "client":
                client.close_write()
                assert target.recv(100) == b""
            else:
                target.shutdown(socket.SHUT_WR)
                assert client.read() == b""
            ended = handfast.wait("proxy", subevent="server_disconnect")
            if first == "client":
                assert_not_in_order(client)
                assert ended["error_msg"] == "half-closed too long"
            else:
                with pytest.raises(ConnectionResetError):
                    target.recv(100)


@pytest.mark.parametrize("start", [b"", b"\x16\x03\x01\x02\x00\x01\x00"], ids=["silence", "half"])
def test_a_handshake_that_does_not_go_on_is_ended_after_its_timeout(
    serve: Serve, backend: Backend, start: bytes
) -> None:
    handfast = serve(backend.target, extra="handshake-timeout: 300ms")
    with socket.create_connection(("127.0.0.1", handfast.port()), TIMEOUT) as sock:
        sock.sendall(start)
        said = sock.recv(100)

    assert said == b""
    event = handfast.wait("auth")
    assert (event["outcome"], event["reason"]) == ("failed", "timeout")
    assert len(handfast.events("auth")) == 1
    assert 300 <= float(event["duration_ms"]) < 1500
