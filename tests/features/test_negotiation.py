"""What a listener negotiates: versions, suites, and post-quantum key exchange."""

from __future__ import annotations

import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest
from OpenSSL import SSL

from harness.clients import connect, echoes, trusting
from harness.homes import TIMEOUT

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Certificates
    from features.conftest import Start, Targets

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(("only", "spoken", "refused"), [("1.2", V12, V13), ("1.3", V13, V12)])
def test_a_listener_speaks_the_versions_that_it_is_given_and_no_other(
    start: Start,
    targets: Targets,
    certificates: Certificates,
    only: str,
    spoken: ssl.TLSVersion,
    refused: ssl.TLSVersion,
) -> None:
    front = start({"target": targets.echo(), "tls": {"versions": [only]}})

    with connect(front.port(), trusting(certificates.ca, spoken)) as client:
        assert echoes(client)
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        connect(front.port(), trusting(certificates.ca, refused))

    assert front.wait("auth", outcome="denied")["reason"] == "unsupported_protocol"


def test_versions_are_per_listener(
    start: Start, targets: Targets, certificates: Certificates
) -> None:
    target = targets.echo()
    front = start({"target": target, "tls": {"versions": ["1.3"]}}, {"target": target})

    with connect(front.port(1), trusting(certificates.ca, V12)) as client:
        assert client.version() == "TLSv1.2"


@pytest.mark.parametrize(
    ("suites", "version"),
    [
        (["TLS_CHACHA20_POLY1305_SHA256"], "1.3"),
        (["TLS_AES_128_GCM_SHA256"], "1.3"),
        (["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"], "1.2"),
        (["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"], "1.2"),
    ],
)
def test_a_listener_takes_a_suite_of_its_list(
    start: Start, targets: Targets, context: ssl.SSLContext, suites: list[str], version: str
) -> None:
    front = start(
        {"target": targets.echo(), "tls": {"versions": [version], "ciphersuites": suites}}
    )

    with connect(front.port(), context) as client:
        assert echoes(client)

    assert front.wait("auth", outcome="granted")["ciphersuite"] == suites[0]


@pytest.mark.parametrize(
    ("suite", "version", "options"),
    [
        ("TLS_AES_128_GCM_SHA256", "1.3", "-tls1_3 -ciphersuites TLS_AES_256_GCM_SHA384"),
        (
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            "1.2",
            "-tls1_2 -cipher ECDHE-ECDSA-AES256-GCM-SHA384",
        ),
    ],
)
def test_a_client_without_a_suite_of_the_list_is_refused(
    start: Start, targets: Targets, suite: str, version: str, options: str
) -> None:
    policy = {"versions": [version], "ciphersuites": [suite]}
    front = start({"target": targets.echo(), "tls": policy})

    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{front.port()}", *options.split()]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=TIMEOUT, check=False)

    assert b"handshake failure" in done.stderr
    denied = front.wait("auth", outcome="denied")
    assert (denied["reason"], denied["alert"]) == ("no_shared_cipher", "handshake_failure sent")


def greeting_by_pyopenssl(port: int, ca: Path) -> bytes:
    """Have pyOpenSSL, whose OpenSSL knows X25519MLKEM768, do a handshake and read a greeting."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(str(ca).encode())
    context.set_verify(SSL.VERIFY_PEER)
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as raw:
        raw.setblocking(True)
        client = SSL.Connection(context, raw)
        client.set_tlsext_host_name(b"localhost")
        client.set_connect_state()
        client.do_handshake()
        return bytes(client.recv(100))


def test_where_post_quantum_is_required_a_client_that_can_comes_in(
    start: Start, targets: Targets, certificates: Certificates
) -> None:
    front = start({"target": targets.says("hello"), "tls": {"require-post-quantum": True}})

    assert greeting_by_pyopenssl(front.port(), certificates.ca) == b"hello"
    assert front.wait("auth", outcome="granted")["group"] == "X25519MLKEM768"


@pytest.mark.parametrize("version", [V12, V13])
def test_where_post_quantum_is_required_others_are_denied(
    start: Start, targets: Targets, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    front = start({"target": targets.says("hello"), "tls": {"require-post-quantum": True}})

    with pytest.raises(ssl.SSLError, match=r"(?i)insufficient.security"):
        connect(front.port(), trusting(certificates.ca, version))

    assert front.wait("auth", outcome="denied")["alert"] == "insufficient_security sent"
    assert not front.events("proxy")


def test_a_ticket_of_another_listener_does_not_spare_a_client_what_is_required(
    start: Start, targets: Targets, certificates: Certificates
) -> None:
    target = targets.echo()
    front = start({"target": target}, {"target": target, "tls": {"require-post-quantum": True}})
    context = trusting(certificates.ca, V13)
    with connect(front.port(), context) as client:
        assert echoes(client)
        session = client.session

    with pytest.raises(ssl.SSLError, match=r"(?i)insufficient.security"):
        connect(front.port(1), context, session)
