"""The standard library's ssl as the client."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Certificates, Serve
    from harness.backends import Backend


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
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
