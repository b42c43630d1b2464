"""What is written is read with the parser of Prometheus' own client library."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from handfast.observe.counters import BOUNDS, Histogram
from handfast.observe.metrics import METRICS, PREFIX, render
from handfast.observe.status import (
    CertificateExpiry,
    FailureCount,
    HandshakeCount,
    ListenerStatus,
    ProcessGauge,
    ProcessStatus,
    Reloads,
    Status,
)

Series: TypeAlias = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def durations(*seconds: float) -> Histogram:
    histogram = Histogram()
    for each in seconds:
        histogram.add(each)
    return histogram


FULL = Status(
    version="1.2.3",
    pid=7,
    uptime=2.5,
    state="serving",
    config="/etc/handfast.yaml",
    listeners=(
        ListenerStatus("0.0.0.0:443", "tcp://a:1", "web", 0, accepted=9, active=4),
        ListenerStatus("[::]:444", "unix:/x", accepted=1),
    ),
    processes=(
        ProcessStatus("supervisor", 7, resident=4096),
        ProcessStatus("relay-1", 8, restarts=2, resident=8192, proportional=4096),
        ProcessStatus("relay-2", 0, restarts=1),
        ProcessStatus("acceptor-1", 9, ready=False),
        ProcessStatus("acceptor-1", 10, restarts=5, resident=1, current=False),
    ),
    totals={
        "active": 3,
        "bytes_in": 1 << 60,
        "bytes_out": 2,
        "connect_failures": 5,
        "handshakes_denied": 6,
        "handshakes_failed": 7,
        "kernel_refused": 14,
        "log_dropped": 8,
        "moved": 23,
        "relayed": 9,
        "resumed": 10,
    },
    generation=3,
    reloads=Reloads(ok=2, failed=1, last=1763709600.5),
    certificates=(CertificateExpiry("web", 'CN=a "b" \\ c\n', "ab" * 32, 1763709600.0),),
    handshakes=(HandshakeCount("TLSv1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768", 11),),
    failures=(FailureCount("denied", "no_rule", 6),),
    refused={"rate": 12},
    handshaking=13,
    handshake_seconds=durations(0.004, 0.004, 60.0),
    connect_seconds=durations(0.0001),
    stall_seconds=durations(0.02),
    gauges=(
        ProcessGauge("relay-1", "target_up", {"target": "tcp://a:1"}, 0.0),
        ProcessGauge("relay-2", "target_up", {"target": "tcp://a:1"}, 1.0),
        ProcessGauge("relay-1", "sessions", {"transport": "kernel"}, 15.0),
        ProcessGauge("relay-2", "sessions", {"transport": "kernel"}, 16.0),
    ),
    kernel_tls={
        "TlsCurrTxSw": 17,
        "TlsCurrRxDevice": 18,
        "TlsTxDevice": 19,
        "TlsDecryptError": 20,
        "TlsRxRekeyOk": 21,
        "TlsFromTheFuture": 22,
    },
)


def read(status: Status) -> Series:
    """Give each series' value, without the prefix of all names."""
    found: Series = {}
    for family in text_string_to_metric_families(render(status).decode()):
        for sample in family.samples:
            key = (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items())))
            assert key not in found, "a series comes twice"
            found[key] = sample.value
    return found


def of(name: str, series: Series) -> dict[tuple[str, ...], float]:
    """Give the values of a metric by the values of its labels, in the order of their names."""
    return {
        tuple(value for _, value in labels): value
        for (each, labels), value in series.items()
        if each == name
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("build_info", {("1.2.3",): 1}),
        ("state", {("starting",): 0, ("serving",): 1, ("draining",): 0}),
        ("ready", {(): 0}),
        ("uptime_seconds", {(): 2.5}),
        ("connections_accepted_total", {("web",): 9, ("[::]:444",): 1}),
        ("connections_active", {("web",): 4, ("[::]:444",): 0}),
        ("connections_refused_total", {("rate",): 12}),
        ("connections_relayed_total", {(): 9}),
        ("connections_relaying", {(): 3}),
        ("received_bytes_total", {(): 1 << 60}),
        ("sent_bytes_total", {(): 2}),
        ("handshake_failures_total", {("denied", "no_rule"): 6}),
        ("handshakes_resumed_total", {(): 10}),
        ("handshakes_in_progress", {(): 13}),
        ("connect_failures_total", {(): 5}),
        ("process_restarts_total", {("supervisor", "supervisor"): 0, ("relay-1", "relay"): 2,
                                    ("relay-2", "relay"): 1, ("acceptor-1", "acceptor"): 0}),
        ("process_up", {("supervisor", "supervisor"): 1, ("relay-1", "relay"): 1,
                        ("relay-2", "relay"): 0, ("acceptor-1", "acceptor"): 0}),
        ("process_resident_memory_bytes",
         {("supervisor", "supervisor"): 4096, ("relay-1", "relay"): 8192}),
        ("process_proportional_memory_bytes", {("relay-1", "relay"): 4096}),
        ("generation", {(): 3}),
        ("reloads_total", {("ok",): 2, ("failed",): 1}),
        ("last_reload_success_timestamp_seconds", {(): 1763709600.5}),
        ("certificate_expiry_timestamp_seconds",
         {("ab" * 32, "web", 'CN=a "b" \\ c\n'): 1763709600}),
        ("log_lines_dropped_total", {(): 8}),
        ("target_up", {("relay-1", "tcp://a:1"): 0, ("relay-2", "tcp://a:1"): 1}),
        ("handshakes_total", {
            ("TLS_AES_128_GCM_SHA256", "X25519MLKEM768", "granted", "TLSv1.3"): 11,
            ("", "", "denied", ""): 6,
            ("", "", "failed", ""): 7,
        }),
        ("connect_duration_seconds_count", {(): 1}),
        ("sessions", {("relay-1", "kernel"): 15, ("relay-2", "kernel"): 16}),
        ("kernel_tls_refused_total", {(): 14}),
        ("kernel_tls_sessions", {("tx", "software"): 17, ("rx", "device"): 18}),
        ("kernel_tls_sessions_total", {("tx", "device"): 19}),
        ("kernel_tls_errors_total", {("decrypt",): 20}),
        ("kernel_tls_rekeys_total", {("rx", "ok"): 21}),
        ("handshake_duration_seconds_count", {(): 3}),
    ],
)  # fmt: skip
def test_each_metric_says_what_the_status_says(
    name: str, expected: dict[tuple[str, ...], float]
) -> None:
    assert of(name, read(FULL)) == expected


def test_buckets_are_cumulative_and_the_last_has_all() -> None:
    buckets = of("handshake_duration_seconds_bucket", read(FULL))

    assert list(buckets.values()) == [0, 0, *[2] * (len(BOUNDS) - 2), 3]
    assert [float(bound) for (bound,) in buckets] == [*BOUNDS, float("inf")]


def test_every_metric_has_its_type_and_text() -> None:
    families = list(text_string_to_metric_families(render(FULL).decode()))

    assert [each.name for each in families if each.type == "unknown"] == []
    known = {name.removesuffix("_total") for name in METRICS} | {"target_up"}
    assert {each.name.removeprefix(PREFIX) for each in families} == known
    assert all(each.documentation for each in families)


def test_a_worker_cannot_write_over_the_metrics_of_others() -> None:
    forged = ProcessGauge("relay-1", "process_up", {"process": "relay-2"}, 1.0)
    posing = ProcessGauge("relay-1", "target_up", {"process": "relay-2"}, 1.0)
    status = Status("1", 1, 1.0, "serving", "", (), (), {}, gauges=(forged, posing, posing))

    series = read(status)

    assert of("process_up", series) == {}
    assert of("target_up", series) == {("relay-1",): 1}


def test_every_metric_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()

    assert [name for name in METRICS if f"`{PREFIX}{name}`" not in text] == []


@given(st.text(st.characters(codec="utf-8")), st.floats(-1e15, 1e15), st.integers(0, 1 << 70))
def test_any_text_and_number_can_be_read_back(text: str, number: float, count: int) -> None:
    status = Status("1", 1, number, "serving", "", (ListenerStatus("", "", text or "x"),), (),
                    {"bytes_in": count})  # fmt: skip

    series = read(status)

    assert of("connections_accepted_total", series) == {(text or "x",): 0}
    assert of("uptime_seconds", series) == {(): number}
    assert of("received_bytes_total", series) == {(): count}
