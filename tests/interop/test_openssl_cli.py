"""`openssl s_client`, each version and suite, and what it can do with a session."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from harness.backends import Backend
from harness.clients import connect, echoes, trusting
from harness.homes import TIMEOUT, needs_rekey
from harness.streams import Exchange, random_bytes, sha256
from harness.terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Certificates, Serve
    from harness.instance import Instance

TLS13: Final = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
TLS12: Final = {
    "AES128-GCM-SHA256": "AES_128_GCM_SHA256",
    "AES256-GCM-SHA384": "AES_256_GCM_SHA384",
    "CHACHA20-POLY1305": "CHACHA20_POLY1305_SHA256",
}
KINDS: Final = ["ecdsa", "rsa"]
SUITES: Final = [
    *((kind, f"-tls1_3 -ciphersuites {name}", name) for name in TLS13 for kind in KINDS),
    *(
        (
            kind,
            f"-tls1_2 -cipher ECDHE-{kind.upper()}-{name}",
            f"TLS_ECDHE_{kind.upper()}_WITH_{full}",
        )
        for name, full in TLS12.items()
        for kind in KINDS
    ),
]


def s_client(handfast: Instance, certificates: Certificates, options: str) -> list[str]:
    """Give the command line of an s_client that verifies handfast."""
    return [
        "openssl", "s_client", "-connect", f"127.0.0.1:{handfast.port()}",
        "-servername", "localhost", "-CAfile", str(certificates.ca), "-verify_return_error",
        *options.split(),
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "suite"), SUITES)
def test_each_suite_carries_a_megabyte_each_way(
    serve: Serve, certificates: Certificates, kind: str, options: str, suite: str
) -> None:
    up, down = random_bytes(1_300_003), random_bytes(1_300_001)
    exchange = Exchange(len(up), down)
    rsa = {"chain": certificates.rsa_chain, "key": certificates.rsa_key}
    with Backend(exchange) as backend:
        handfast = serve(backend.target, **(rsa if kind == "rsa" else {}))
        command = s_client(handfast, certificates, options + " -quiet -nocommands")
        done = subprocess.run(command, input=up, capture_output=True, timeout=TIMEOUT, check=False)

        assert done.returncode == 0, done.stderr
        assert sha256(done.stdout) == sha256(down)
        assert exchange.received == [sha256(up)]
        granted = handfast.wait("auth", outcome="granted")
        assert granted["tls_version"] == ("TLSv1.3" if "-tls1_3" in options else "TLSv1.2")
        assert granted["ciphersuite"] == suite


@needs_rekey
@pytest.mark.parametrize("suite", TLS13)
@pytest.mark.parametrize(("letter", "answered"), [("K", True), ("k", False)])
def test_data_flows_both_ways_after_a_key_update(
    serve: Serve,
    backend: Backend,
    certificates: Certificates,
    suite: str,
    letter: str,
    answered: bool,
) -> None:
    handfast = serve(backend.target)
    options = f"-tls1_3 -ciphersuites {suite} -msg"
    with Terminal(s_client(handfast, certificates, options)) as client:
        client.enter("before the update")
        client.expect("before the update")
        for number in range(3):
            client.enter(letter)
            client.expect("KEYUPDATE")
            client.expect(">>> TLS 1.3, Handshake [length 0005], KeyUpdate")
            if answered:
                client.expect("<<< TLS 1.3, Handshake [length 0005], KeyUpdate")
            client.enter(f"after update {number}")
            client.expect(f"after update {number}")

    end = handfast.wait("proxy", subevent="client_disconnect")
    assert "error_msg" not in end


def test_renegotiation_is_refused_and_others_are_not_disturbed(
    serve: Serve, backend: Backend, certificates: Certificates
) -> None:
    handfast = serve(backend.target)
    context = trusting(certificates.ca)
    with (
        connect(handfast.port(), context) as other,
        Terminal(s_client(handfast, certificates, "-tls1_2")) as client,
    ):
        client.enter("before")
        client.expect("before")
        client.enter("R")
        client.expect("RENEGOTIATING")
        client.expect("no renegotiation")

        assert echoes(other)
    granted = handfast.wait("auth", outcome="granted", tls_version="TLSv1.2")
    handfast.wait("proxy", subevent="client_disconnect", client_port=granted["client_port"])


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_session_resumes_at_an_acceptor_that_did_not_make_it(
    serve: Serve, backend: Backend, certificates: Certificates, tmp_path: Path, version: str
) -> None:
    handfast = serve(backend.target, nworkers=2)
    ticket = tmp_path / "session.pem"
    save = s_client(handfast, certificates, f"{version} -sess_out {ticket}")
    with Terminal(save) as client:
        client.enter("first")
        client.expect("first")
    maker = int(handfast.wait("auth", outcome="granted", resumed="false")["pid"])

    os.kill(maker, signal.SIGSTOP)
    try:
        resume = s_client(handfast, certificates, f"{version} -sess_in {ticket}")
        with Terminal(resume) as client:
            client.expect("Reused, ")
            client.enter("second")
            client.expect("second")
        resumed = handfast.wait("auth", outcome="granted", resumed="true")
    finally:
        os.kill(maker, signal.SIGCONT)

    assert int(resumed["pid"]) != maker


def test_tls_1_1_is_refused_with_protocol_version(
    serve: Serve, backend: Backend, certificates: Certificates
) -> None:
    handfast = serve(backend.target)
    command = s_client(handfast, certificates, "-tls1_1 -cipher ALL:@SECLEVEL=0")
    done = subprocess.run(command, input=b"", capture_output=True, timeout=TIMEOUT, check=False)

    assert done.returncode != 0
    assert b"alert protocol version" in done.stderr
    refused = handfast.wait("auth", subevent="handshake")
    assert refused["outcome"] == "denied"
    assert refused["alert"] == "protocol_version sent"
    assert refused["offered_versions"] == "TLSv1.1"
    assert refused["sni"] == "localhost"
    assert not handfast.events("proxy")
