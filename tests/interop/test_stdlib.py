"""The standard library's ssl as the client."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from harness.backends import Backend
from harness.clients import connect, trusting
from harness.homes import TIMEOUT
from harness.streams import Exchange, MemoryClient, random_bytes, sha256

if TYPE_CHECKING:
    from conftest import Certificates, Serve

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_echo_comes_back_and_the_session_ends_in_order(
    serve: Serve, backend: Backend, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    handfast = serve(backend.target)
    context = ssl.create_default_context(cafile=str(certificates.ca))
    context.minimum_version = context.maximum_version = version

    with (
        socket.create_connection(("127.0.0.1", handfast.port()), 10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as client,
    ):
        client.sendall(b"hello")
        answer = client.recv(100)
        client.unwrap().close()

    assert answer == b"hello"
    end = handfast.wait("proxy", subevent="client_disconnect")
    assert "error_msg" not in end
    assert (end["bytes_in"], end["bytes_out"]) == ("5", "5")


@pytest.mark.parametrize("version", VERSIONS)
def test_two_megabytes_each_way_at_once_arrive_intact(
    serve: Serve, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    up, down = random_bytes(2_000_003), random_bytes(2_000_001)
    exchange = Exchange(len(up), down)
    with Backend(exchange) as backend:
        handfast = serve(backend.target)
        with socket.create_connection(("127.0.0.1", handfast.port()), TIMEOUT) as raw:
            client = MemoryClient(raw, trusting(certificates.ca, version))
            client.handshake()
            received = client.exchange(up, len(down))
            assert client.read() == b""  # the target's end comes as close_notify
            client.close_write()
        end = handfast.wait("proxy", subevent="client_disconnect")

    assert received == sha256(down)
    assert exchange.received == [sha256(up)]
    assert (end["bytes_in"], end["bytes_out"]) == (str(len(up)), str(len(down)))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_second_connection_resumes_the_session(
    serve: Serve, backend: Backend, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    handfast = serve(backend.target)
    context = trusting(certificates.ca, version)
    with connect(handfast.port(), context) as first:
        first.sendall(b"one")
        assert first.recv(3) == b"one"  # the ticket of TLS 1.3 has come with it
        session = first.session
        first.unwrap().close()

    with connect(handfast.port(), context, session) as second:
        second.sendall(b"two")
        assert second.recv(3) == b"two"
        reused = second.session_reused
        second.unwrap().close()

    assert reused
    handfast.wait("auth", outcome="granted", resumed="true")
    assert len(handfast.events("auth", outcome="granted", resumed="false")) == 1
