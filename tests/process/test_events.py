"""What is logged, by a running handfast: each event with its fields."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes

import handfast
from harness.clients import connect, echoes, trusting
from harness.instance import Instance, parse_line, wait_for
from harness.pki import DAY, NOW, issue

if TYPE_CHECKING:
    from conftest import Certificates, Serve
    from harness.backends import Backend

BASE = {"timestamp", "service", "process_type", "pid", "level", "event"}
ENDS = {"client_ip", "client_port", "listen_ip", "listen_port"}


def talk(running: Instance, context: ssl.SSLContext) -> int:
    """Send a few bytes and have them back; give the client's port."""
    with connect(running.port(), context) as client:
        port = int(client.getsockname()[1])
        assert echoes(client, b"hello")
        client.unwrap().close()
    running.wait("proxy", subevent="server_disconnect", client_port=str(port))
    return port


def test_every_line_has_the_base_fields_and_the_time_first(
    serve: Serve, backend: Backend, certificates: Certificates
) -> None:
    running = serve(backend.target)
    talk(running, trusting(certificates.ca))

    for line in running.lines:
        fields = parse_line(line)
        assert line.startswith("timestamp=")
        assert fields.keys() >= BASE
        assert datetime.datetime.fromisoformat(fields["timestamp"]).tzinfo is not None
        assert fields["service"] == "handfast"
        assert fields["process_type"] in {"master", "worker"}
        assert fields["level"] == "INFO"
        assert (fields["process_type"] == "master") == (fields["event"] not in {"auth", "proxy"})


def test_the_start_is_told_in_order_with_its_facts(
    serve: Serve, backend: Backend, certificates: Certificates
) -> None:
    running = serve(backend.target, nworkers=1)

    startup, config = running.wait("startup"), running.wait("config_loaded")
    spawned = running.events("worker", worker_state="spawned")

    assert running.events()[0] == startup
    assert startup["version"] == handfast.__version__
    assert startup["argv"].endswith(f"serve -c {running.config}")
    assert startup["pid"] == str(running.process.pid)
    assert (config["nworkers"], config["certchain"], config["servkey"]) == (
        "1", str(certificates.chain), str(certificates.key),
    )  # fmt: skip
    assert {each["worker_id"]: int(each["worker_pid"]) for each in spawned} == {
        name: pid for name, pid in running.pids().items() if name != "supervisor"
    }


def test_each_certificate_is_told_with_its_role_and_facts(
    serve: Serve, backend: Backend, certificates: Certificates, tmp_path: Path
) -> None:
    anchor = tmp_path / "clients.pem"
    anchor.write_bytes(certificates.root.pem())
    running = serve(
        backend.target,
        listener=f"    client-auth: {{mode: optional, trusted-certs: [{anchor}]}}",
    )

    told = {each["cert_role"]: each for each in running.events("cert_loaded")}

    expected = {
        "leaf": certificates.server,
        "server_ca": certificates.intermediate,
        "client_ca": certificates.root,
    }
    assert set(told) == set(expected)
    for role, identity in expected.items():
        certificate = identity.certificate
        assert told[role]["cert_fingerprint"] == certificate.fingerprint(hashes.SHA256()).hex()
        assert told[role]["cert_subject"] == certificate.subject.rfc4514_string()
        assert told[role]["cert_issuer"] == certificate.issuer.rfc4514_string()
        for name, moment in (
            ("cert_notbefore", certificate.not_valid_before_utc),
            ("cert_notafter", certificate.not_valid_after_utc),
        ):
            assert datetime.datetime.fromisoformat(told[role][name]) == moment


def test_an_expired_certificate_is_a_warning_and_still_serves(
    serve: Serve, backend: Backend, certificates: Certificates, tmp_path: Path
) -> None:
    expired = issue("localhost", certificates.root, not_before=NOW - 9 * DAY, not_after=NOW - DAY)
    chain, key = expired.write(tmp_path, "expired")
    running = serve(backend.target, chain=chain, key=key)
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE

    talk(running, careless)

    loaded = running.wait("cert_loaded", cert_role="leaf")
    assert loaded["level"] == "WARN"
    assert loaded["error_msg"].startswith("expired on ")


def test_a_signal_is_told_with_its_name_and_sender(serve: Serve, backend: Backend) -> None:
    running = serve(backend.target, nworkers=1)

    running.process.send_signal(signal.SIGHUP)

    told = running.wait("signal_received")
    assert told["signal_num"] == "1"
    assert told["signal_string"] == "Hangup"
    assert told["recvd_from"] == str(os.getpid())


def test_a_connection_is_told_in_four_events_and_one_about_its_handshake(
    serve: Serve, backend: Backend, certificates: Certificates
) -> None:
    running = serve(backend.target, listener="    alpn: [echo]")
    context = trusting(certificates.ca)
    context.set_alpn_protocols(["echo"])

    port = talk(running, context)

    told = running.events(client_port=str(port))
    ends = {
        "client_ip": "127.0.0.1", "client_port": str(port),
        "listen_ip": "127.0.0.1", "listen_port": str(running.port()),
    }  # fmt: skip
    assert all(ends.items() <= each.items() for each in told)
    auth = next(each for each in told if each["event"] == "auth")
    assert (auth["subevent"], auth["outcome"]) == ("handshake", "granted")
    assert (auth["sni"], auth["alpn"], auth["tls_version"]) == ("localhost", "echo", "TLSv1.3")
    assert auth["ciphersuite"].startswith("TLS_")
    assert {"group", "duration_ms"} <= auth.keys()
    proxies = {each["subevent"]: each for each in told if each["event"] == "proxy"}
    assert set(proxies) == {
        "client_connect", "server_connect", "client_disconnect", "server_disconnect",
    }  # fmt: skip
    assert len(told) == 5
    assert proxies["client_connect"]["sni"] == "localhost"
    for subevent in ("server_connect", "client_disconnect", "server_disconnect"):
        assert proxies[subevent]["server_ip"] == "127.0.0.1"
        assert proxies[subevent]["server_port"] == str(backend.port)
        assert float(proxies[subevent]["duration_ms"]) >= 0
        assert "error_msg" not in proxies[subevent]
    assert proxies["client_disconnect"]["bytes_in"] == "5"
    assert proxies["client_disconnect"]["bytes_out"] == "5"


def test_a_client_certificate_is_told_when_granted_and_when_denied(
    serve: Serve, backend: Backend, certificates: Certificates, tmp_path: Path
) -> None:
    anchor = tmp_path / "clients.pem"
    anchor.write_bytes(certificates.root.pem())
    running = serve(
        backend.target,
        listener=f"    client-auth: {{mode: require, trusted-certs: [{anchor}]}}",
    )
    good, stranger = certificates.client("good"), issue("stranger", client=True)
    for name, identity in (("good", good), ("stranger", stranger)):
        context = trusting(certificates.ca)
        context.load_cert_chain(*identity.write(tmp_path, name))
        try:
            talk(running, context)
        except (ssl.SSLError, ConnectionResetError):
            assert name == "stranger"

    granted = running.wait("auth", subevent="mtls", outcome="granted")
    denied = running.wait("auth", outcome="denied")
    for told, identity in ((granted, good), (denied, stranger)):
        certificate = identity.certificate
        assert told["client_cert_fingerprint"] == certificate.fingerprint(hashes.SHA256()).hex()
        assert told["client_cert_subject"] == certificate.subject.rfc4514_string()
        assert told["client_cert_issuer"] == certificate.issuer.rfc4514_string()
        assert told.keys() >= ENDS
    assert denied["subevent"] == "mtls"
    assert denied["reason"] == "certificate_verify_failed"
    assert denied["alert"] == "unknown_ca sent"
    assert denied["error_msg"]
    assert len(running.events("auth", client_port=denied["client_port"])) == 1


def test_a_handshake_that_the_client_gives_up_is_failed_and_told_once(
    serve: Serve, backend: Backend
) -> None:
    running = serve(backend.target)
    distrusting = ssl.create_default_context(cafile=None)

    with pytest.raises(ssl.SSLCertVerificationError):
        connect(running.port(), distrusting)

    told = running.wait("auth", outcome="failed")
    assert told["alert"] == "unknown_ca received"
    assert told["sni"] == "localhost"
    assert "TLSv1.3" in told["offered_versions"]
    assert len(running.events("auth")) == 1


def test_an_unreachable_target_is_a_warning_and_the_client_gets_an_alert(
    serve: Serve, certificates: Certificates
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        running = serve(f"tcp://127.0.0.1:{closed.getsockname()[1]}")

        with (
            connect(running.port(), trusting(certificates.ca)) as client,
            pytest.raises(ssl.SSLError, match=r"(?i)internal.error"),
        ):
            client.recv(1)

    told = running.wait("proxy", subevent="server_connect")
    assert told["level"] == "WARN"
    assert told["error_desc"] == "Connection refused"


def test_the_log_goes_to_a_file_when_one_is_named(
    tmp_path: Path, certificates: Certificates, backend: Backend
) -> None:
    log = tmp_path / "handfast.log"
    config = tmp_path / "own.yaml"
    config.write_text(
        f"logfile: handfast.log\ncontrol: own.sock\nnworkers: 1\nlisten-ip: 127.0.0.1\n"
        f"listen-port: 0\ntarget-ip: 127.0.0.1\ntarget-port: {backend.port}\n"
        f"cert-chain: {certificates.chain}\nservkey: {certificates.key}\n"
    )
    running = Instance(config)

    def listening() -> str:
        lines = log.read_text().splitlines() if log.exists() else []
        found = [each for each in map(parse_line, lines) if each["event"] == "listening"]
        return found[0]["listen_port"] if found else ""

    port = wait_for(listening, "the log file tells of the listener")
    with connect(int(port), trusting(certificates.ca)) as client:
        assert echoes(client)
        client.unwrap().close()
    assert running.lines == []
    running.stop()
    events = [parse_line(line) for line in log.read_text().splitlines()]
    assert events[-1]["event"] == "stopped"
    assert {"auth", "proxy"} <= {each["event"] for each in events}
    assert log.stat().st_mode & 0o007 == 0


def test_loglevel_warn_leaves_out_what_is_everyday(
    tmp_path: Path, certificates: Certificates, serve: Serve, backend: Backend
) -> None:
    port = free_port()
    config = tmp_path / "quiet.yaml"
    config.write_text(
        f"loglevel: WARN\ncontrol: quiet.sock\nnworkers: 1\nlisten-ip: 127.0.0.1\n"
        f"listen-port: {port}\ntarget-ip: 127.0.0.1\ntarget-port: {backend.port}\n"
        f"cert-chain: {certificates.chain}\nservkey: {certificates.key}\n"
    )
    running = Instance(config)

    wait_for(lambda: running.command("status").returncode == 0, "it serves")
    with connect(port, trusting(certificates.ca)) as client:
        assert echoes(client)
    os.kill(running.pids()["relay-1"], signal.SIGKILL)

    running.wait("worker", worker_state="dead")
    assert {each["level"] for each in running.events()} == {"ERROR"}
    running.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
