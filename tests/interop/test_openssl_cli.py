"""`openssl s_client`, each version and suite, and what it can do with a session."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest
from harness.backends import Backend
from harness.clients import connect, echoes, trusting
from harness.streams import Exchange, random_bytes, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Certificates, Serve
    from harness.instance import Instance

TIMEOUT: Final = 20.0
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
        (kind, f"-tls1_2 -cipher ECDHE-{kind.upper()}-{name}", f"TLS_ECDHE_{kind.upper()}_WITH_{full}")
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


class Interactive:
    """An s_client that takes lines and command letters, one write each."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.output = b""

    def type(self, line: str) -> None:
        """Type a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def expect(self, text: str) -> None:
        """Wait for a text in the output, and forget the output up to its end."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + TIMEOUT
        while text.encode() not in self.output:
            left = max(0.0, deadline - time.monotonic())
            ready = select.select([self.process.stdout], [], [], left)[0]
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert data, f"no {text!r} in:\n{self.output.decode(errors='replace')}"
            self.output += data
        self.output = self.output.partition(text.encode())[2]


@contextmanager
def interactive(command: list[str]) -> Iterator[Interactive]:
    """Run an interactive s_client; at the end its input is closed and it ends."""
    client = Interactive(command)
    try:
        yield client
        client.process.communicate(timeout=TIMEOUT)
    finally:
        client.process.kill()
        client.process.communicate()


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
    with interactive(s_client(handfast, certificates, options)) as client:
        client.type("before the update")
        client.expect("before the update")
        for number in range(3):
            client.type(letter)
            client.expect("KEYUPDATE")
            client.expect(">>> TLS 1.3, Handshake [length 0005], KeyUpdate")
            if answered:
                client.expect("<<< TLS 1.3, Handshake [length 0005], KeyUpdate")
            client.type(f"after update {number}")
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
        interactive(s_client(handfast, certificates, "-tls1_2")) as client,
    ):
        client.type("before")
        client.expect("before")
        client.type("R")
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
    with interactive(save) as client:
        client.type("first")
        client.expect("first")
    maker = int(handfast.wait("auth", outcome="granted", resumed="false")["pid"])

    os.kill(maker, signal.SIGSTOP)
    try:
        resume = s_client(handfast, certificates, f"{version} -sess_in {ticket}")
        with interactive(resume) as client:
            client.expect("Reused, ")
            client.type("second")
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
