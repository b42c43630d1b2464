"""Metrics, health and status of a real handfast, read as Prometheus and people read them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.clients import connect, echoes, trusting
from harness.instance import Instance, wait_for
from harness.processes import kill_and_wait

if TYPE_CHECKING:
    from conftest import Certificates, Serve
    from harness.backends import Backend

TIMEOUT = 20.0


class Observed:
    """A handfast, and the Unix socket that it serves its metrics on."""

    def __init__(self, running: Instance, path: Path) -> None:
        self.running = running
        self.path = path

    def get(self, target: str, method: str = "GET") -> tuple[int, str]:
        """Make a request; give the code and the body."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            client.connect(str(self.path))
            client.sendall(f"{method} {target} HTTP/1.1\r\nHost: handfast\r\n\r\n".encode())
            response = http.client.HTTPResponse(client, method=method)
            response.begin()
            return response.status, response.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Add up the series of a metric that have these labels."""
        code, text = self.get("/metrics")
        assert code == 200, text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"handfast_{name}" and labels.items() <= sample.labels.items()
        )

    def wait(self, value: float, name: str, **labels: str) -> None:
        """Wait for a metric to have a value."""
        wait_for(lambda: self.metric(name, **labels) == value, f"{name}{labels} {value}")


@pytest.fixture
def observed(serve: Serve, backend: Backend, tmp_path: Path) -> Observed:
    path = tmp_path / "metrics.sock"
    return Observed(serve(backend.target, extra=f"metrics: unix:{path}"), path)


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    return trusting(certificates.ca)


def test_a_connection_is_in_the_metrics_of_all_its_stages(
    observed: Observed, context: ssl.SSLContext
) -> None:
    client = connect(observed.running.port(), context)
    assert echoes(client)
    size = 1000
    client.sendall(b"x" * size)
    received = 0
    while received < size:
        received += len(client.recv(size))

    observed.wait(1, "connections_active")
    assert observed.metric("connections_relaying") == 1
    assert observed.metric("connections_accepted_total") == 1
    assert observed.metric("handshakes_total", outcome="granted", version="TLSv1.3") == 1
    assert observed.metric("handshake_duration_seconds_count") == 1
    assert observed.metric("connect_duration_seconds_count") == 1
    assert observed.metric("received_bytes_total") >= size  # of a connection that is open
    assert observed.metric("sent_bytes_total") == observed.metric("received_bytes_total")
    client.close()
    observed.wait(0, "connections_active")
    assert observed.metric("received_bytes_total") >= size


def test_a_client_that_speaks_no_tls_is_a_denied_handshake_with_its_reason(
    observed: Observed,
) -> None:
    with socket.create_connection(("127.0.0.1", observed.running.port()), TIMEOUT) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        while client.recv(4096):
            pass

    observed.wait(1, "handshakes_total", outcome="denied")
    assert observed.metric("handshake_failures_total", reason="http_request") == 1


def test_a_target_that_is_not_there_is_counted(
    serve: Serve, tmp_path: Path, context: ssl.SSLContext
) -> None:
    path = tmp_path / "metrics.sock"
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    observed = Observed(serve(f"tcp://127.0.0.1:{port}", extra=f"metrics: unix:{path}"), path)
    client = connect(observed.running.port(), context)

    observed.wait(1, "connect_failures_total")
    client.close()


def test_the_processes_are_told_with_their_memory(observed: Observed) -> None:
    for role, count in {"supervisor": 1, "acceptor": 2, "relay": 2, "monitor": 1}.items():
        assert observed.metric("process_up", role=role) == count
    resident = observed.metric("process_resident_memory_bytes", role="relay")
    assert resident > 2 * (4 << 20)
    if os.geteuid() == 0:
        assert 0 < observed.metric("process_proportional_memory_bytes", role="relay") < resident


def test_the_end_of_the_certificate_is_told(observed: Observed, certificates: Certificates) -> None:
    _, text = observed.get("/metrics")
    (family,) = (
        each
        for each in text_string_to_metric_families(text)
        if each.name == "handfast_certificate_expiry_timestamp_seconds"
    )

    ends = certificates.server.certificate.not_valid_after_utc.timestamp()
    assert [each.value for each in family.samples] == [ends]
    assert "localhost" in family.samples[0].labels["subject"]


def test_a_killed_relay_takes_nothing_from_the_totals_and_is_a_restart(
    observed: Observed, context: ssl.SSLContext
) -> None:
    for _ in range(4):
        client = connect(observed.running.port(), context)
        assert echoes(client)
        client.close()
    observed.wait(0, "connections_relaying")
    before = observed.metric("received_bytes_total")
    assert observed.metric("connections_relayed_total") == 4

    for number in (1, 2):
        kill_and_wait(observed.running.pids()[f"relay-{number}"])

    observed.wait(2, "process_restarts_total", role="relay")
    wait_for(lambda: observed.get("/readyz")[0] == 200, "ready again")
    assert observed.metric("connections_relayed_total") == 4
    assert observed.metric("received_bytes_total") == before


def test_a_drain_is_healthy_and_not_ready(observed: Observed, context: ssl.SSLContext) -> None:
    client = connect(observed.running.port(), context)
    assert echoes(client)
    assert (observed.get("/healthz"), observed.get("/readyz")) == ((200, "ok\n"), (200, "ready\n"))

    observed.running.process.send_signal(signal.SIGTERM)
    observed.running.wait("draining")
    wait_for(lambda: observed.get("/readyz") == (503, "draining\n"), "not ready")

    assert observed.get("/healthz") == (200, "ok\n")
    assert echoes(client)
    client.close()


def test_a_supervisor_that_hangs_is_not_healthy(observed: Observed) -> None:
    observed.running.process.send_signal(signal.SIGSTOP)
    try:
        assert observed.get("/healthz")[0] == 503
    finally:
        observed.running.process.send_signal(signal.SIGCONT)

    wait_for(lambda: observed.get("/healthz")[0] == 200, "healthy again")


def test_garbage_and_silence_do_not_stop_the_metrics(observed: Observed) -> None:
    silent = []
    for number in range(200):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(observed.path))
        if number % 2:
            client.sendall(os.urandom(64) + b"\r\n\r\n")
        silent.append(client)

    assert observed.get("/healthz")[0] == 200

    for client in silent:
        client.close()
    assert observed.running.events("worker", worker_state="dead") == []


def test_a_reload_is_counted_and_ready_all_the_time(observed: Observed) -> None:
    assert observed.metric("generation") == 1
    reloading = subprocess.Popen(
        [sys.executable, "-m", "handfast", "reload", "-c", str(observed.running.config)]
    )
    pages = []
    while reloading.poll() is None:
        pages.append(observed.get("/readyz"))
    pages.append(observed.get("/readyz"))

    assert reloading.returncode == 0
    assert set(pages) == {(200, "ready\n")}
    observed.wait(2, "generation")
    assert observed.metric("reloads_total", result="ok") == 1
    assert abs(observed.metric("last_reload_success_timestamp_seconds") - time.time()) < TIMEOUT
    observed.wait(2, "process_up", role="acceptor")


def test_a_reload_that_fails_is_counted_and_status_says_why(observed: Observed) -> None:
    config = observed.running.config
    text = config.read_text()
    config.write_text(text.replace("server-key.pem", "absent.pem").replace("key: ", "key: /absent"))
    observed.running.process.send_signal(signal.SIGHUP)

    observed.wait(1, "reloads_total", result="failed")
    assert observed.metric("generation") == 1
    assert observed.get("/readyz")[0] == 200
    config.write_text(text)
    assert "the last reload failed: " in observed.running.command("status").stdout


def test_a_watch_shows_a_living_handfast(observed: Observed, context: ssl.SSLContext) -> None:
    watch = subprocess.Popen(
        [sys.executable, "-m", "handfast", "status", "--watch", "--json",
         "-c", str(observed.running.config)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    lines = watch.stdout
    assert lines is not None
    first = json.loads(lines.readline())
    client = connect(observed.running.port(), context)
    assert echoes(client)
    wait_for(lambda: json.loads(lines.readline())["totals"]["active"] == 1, "it is shown")

    watch.send_signal(signal.SIGINT)

    assert watch.wait(TIMEOUT) == 0
    assert first["totals"]["accepted"] == 0
    lines.close()
    client.close()
