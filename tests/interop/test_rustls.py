"""rustls as the client."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import rtls

from harness.backends import Backend
from harness.homes import TIMEOUT
from harness.streams import Exchange, MemoryClient, random_bytes, sha256

if TYPE_CHECKING:
    from conftest import Certificates, Serve


@pytest.mark.parametrize(
    ("version", "name"), [("TLSv1_2", "TLSv1.2"), ("TLSv1_3", "TLSv1.3")], ids=["1.2", "1.3"]
)
@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_a_rustls_client_exchanges_two_megabytes_each_way(
    serve: Serve, certificates: Certificates, version: str, name: str, kind: str
) -> None:
    chain, key = (
        (certificates.chain, certificates.key)
        if kind == "ecdsa"
        else (certificates.rsa_chain, certificates.rsa_key)
    )
    up, down = random_bytes(2_000_003), random_bytes(2_000_001)
    exchange = Exchange(len(up), down)
    context = rtls.create_default_context(cafile=str(certificates.ca))
    context.minimum_version = context.maximum_version = getattr(rtls.TLSVersion, version)
    with Backend(exchange) as backend:
        handfast = serve(backend.target, chain=chain, key=key)
        with socket.create_connection(("127.0.0.1", handfast.port()), TIMEOUT) as raw:
            client = MemoryClient(raw, context, rtls)
            client.handshake()
            received = client.exchange(up, len(down))
            client.close_write()
        end = handfast.wait("proxy", subevent="client_disconnect")

    assert received == sha256(down)
    assert exchange.received == [sha256(up)]
    assert "error_msg" not in end
    assert handfast.wait("auth", outcome="granted")["tls_version"] == name
