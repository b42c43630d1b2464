"""`gnutls-cli`, both versions, and the commands it takes in its input."""

from __future__ import annotations

import base64
import subprocess
from typing import TYPE_CHECKING

import pytest

from harness.backends import Backend
from harness.homes import TIMEOUT, needs_rekey, sized
from harness.streams import Exchange, random_bytes, sha256
from harness.terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Certificates, Serve
    from harness.instance import Instance


def gnutls_cli(
    handfast: Instance, certificates: Certificates, log: Path, version: str, *options: str
) -> list[str]:
    """Give the command line of a gnutls-cli that verifies handfast and prints only data."""
    return [
        "gnutls-cli", "--x509cafile", str(certificates.ca), "--port", str(handfast.port()),
        "--priority", f"NORMAL:-VERS-ALL:+VERS-TLS{version}", "--logfile", str(log),
        *options, "--sni-hostname", "localhost", "--verify-hostname", "localhost", "127.0.0.1",
    ]  # fmt: skip


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("cipher", ["AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305"])
def test_a_megabyte_each_way_arrives_intact(
    serve: Serve, certificates: Certificates, tmp_path: Path, version: str, cipher: str
) -> None:
    # gnutls-cli reads its input by lines of text.
    up = base64.encodebytes(random_bytes(sized(1_000_000, 50)))
    down = random_bytes(sized(1_300_001, 50))  # gnutls-cli writes them one by one
    exchange = Exchange(len(up), down)
    with Backend(exchange) as backend:
        handfast = serve(backend.target)
        command = gnutls_cli(handfast, certificates, tmp_path / "log", version)
        command[6] += f":-CIPHER-ALL:+{cipher}"
        done = subprocess.run(command, input=up, capture_output=True, timeout=TIMEOUT, check=False)

        assert sha256(done.stdout) == sha256(down)
        assert exchange.received == [sha256(up)]
        granted = handfast.wait("auth", outcome="granted")
        assert granted["tls_version"] == f"TLSv{version}"
        assert cipher.replace("-", "") in granted["ciphersuite"].replace("_", "")


@needs_rekey
@pytest.mark.parametrize("command", ["rekey", "rekey1"])
def test_data_flows_both_ways_after_a_rekey(
    serve: Serve, backend: Backend, certificates: Certificates, tmp_path: Path, command: str
) -> None:
    handfast = serve(backend.target)
    line = gnutls_cli(handfast, certificates, tmp_path / "log", "1.3", "--inline-commands")
    with Terminal(line) as client:
        for number in range(3):
            client.enter(f"before {number}")
            client.expect(f"before {number}")
            client.enter(f"^{command}^")
            client.enter(f"after {number}")
            client.expect(f"after {number}")

    end = handfast.wait("proxy", subevent="client_disconnect")
    assert "error_msg" not in end
    # Text alone is counted: the commands were taken as such.
    assert (end["bytes_in"], end["bytes_out"]) == ("51", "51")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_gnutls_resumes_the_session(
    serve: Serve, backend: Backend, certificates: Certificates, tmp_path: Path, version: str
) -> None:
    handfast = serve(backend.target)
    log = tmp_path / "log"
    line = gnutls_cli(handfast, certificates, log, version, "--inline-commands")
    with Terminal(line) as client:
        client.enter("first")
        client.expect("first")
        client.enter("^resume^")  # reconnects
        client.enter("second")
        client.expect("second")

    assert (
        handfast.wait("auth", outcome="granted", resumed="true")["tls_version"] == f"TLSv{version}"
    )
    assert "This is a resumed session" in log.read_text()
