"""pyOpenSSL as the client: the one at hand that speaks the post-quantum key exchange."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from OpenSSL import SSL

from harness.backends import Backend
from harness.homes import TIMEOUT
from harness.streams import Exchange, random_bytes, sha256

if TYPE_CHECKING:
    from conftest import Certificates, Serve


def test_the_key_exchange_is_post_quantum_and_the_log_names_it(
    serve: Serve, certificates: Certificates
) -> None:
    up, down = random_bytes(1_500_000), random_bytes(1_500_001)
    exchange = Exchange(len(up), down)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(str(certificates.ca))
    context.set_verify(SSL.VERIFY_PEER)
    with Backend(exchange) as backend:
        handfast = serve(backend.target)
        with socket.create_connection(("127.0.0.1", handfast.port()), TIMEOUT) as raw:
            raw.settimeout(None)  # pyOpenSSL wants it to block
            client = SSL.Connection(context, raw)
            client.set_tlsext_host_name(b"localhost")
            client.set_connect_state()
            client.do_handshake()
            group = client.get_group_name()
            client.sendall(up)
            received = b""
            while len(received) < len(down):
                received += client.recv(65536)
            client.shutdown()
        end = handfast.wait("proxy", subevent="client_disconnect")
        assert backend.served.acquire(timeout=TIMEOUT)  # written is not yet read

    assert group == "X25519MLKEM768"
    assert handfast.wait("auth", outcome="granted")["group"] == "X25519MLKEM768"
    assert handfast.wait("proxy", subevent="client_connect")["group"] == "X25519MLKEM768"
    assert sha256(received) == sha256(down)
    assert exchange.received == [sha256(up)]
    assert (end["bytes_in"], end["bytes_out"]) == (str(len(up)), str(len(down)))
