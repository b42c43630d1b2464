"""The status in the text format of Prometheus, version 0.0.4.

The format is a name, labels and a number on each line; writing it takes the few lines at the end
of this module. The package prometheus_client is left to the tests, which read with it what is
written here: to write with it would cost the monitor 11 MB, and an HTTP server that it does not
use. (https://prometheus.io/docs/instrumenting/exposition_formats/)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Final, Literal, TypeAlias, get_args

from handfast.observe.counters import BOUNDS, SESSIONS, Histogram
from handfast.observe.status import State, Status

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Labels: TypeAlias = tuple[tuple[str, str], ...]
Value: TypeAlias = float | Histogram
Sample: TypeAlias = tuple[str, Labels, Value]
"""A metric's name without its prefix, the labels, and the value."""

PREFIX: Final = "handfast_"

METRICS: Final[dict[str, tuple[Kind, str]]] = {
    "build_info": ("gauge", "Always 1; the label is the version."),
    "state": ("gauge", "1 for the state that handfast is in."),
    "ready": ("gauge", "1 while new connections are served."),
    "uptime_seconds": ("gauge", "Since the supervisor started."),
    "connections_accepted_total": ("counter", "Connections that came."),
    "connections_active": ("gauge", "Open connections, handshakes in progress included."),
    "connections_refused_total": ("counter", "Connections that a limit kept out."),
    "connections_relayed_total": ("counter", "Sessions that came to a relay."),
    "connections_relaying": ("gauge", "Sessions that are at a relay."),
    "sessions_handed_over_total": ("counter", "Sessions that applications have taken."),
    "received_bytes_total": ("counter", "Plaintext from clients."),
    "sent_bytes_total": ("counter", "Plaintext to clients."),
    "handshakes_total": ("counter", "Handshakes that ended; labelled by what they negotiated."),
    "handshake_failures_total": ("counter", "Handshakes denied or failed, by why."),
    "handshakes_resumed_total": ("counter", "Handshakes granted by a ticket."),
    "handshakes_in_progress": ("gauge", "Handshakes that have not ended."),
    "handshake_duration_seconds": ("histogram", "From accept to session."),
    "connect_duration_seconds": ("histogram", "From dialling a target to its connection."),
    "connect_failures_total": ("counter", "Sessions that got no target."),
    "connections_moved_total": ("counter", "Connections that came from another relay."),
    "move_stall_seconds": ("histogram", "How long those stood still on their way."),
    "sessions": ("gauge", "Sessions of each relay, by where their records are sealed."),
    "kernel_tls_refused_total": ("counter", "Sessions that the kernel did not take."),
    "kernel_tls_sessions": ("gauge", "Directions of sessions in the kernel, by who does the work."),
    "kernel_tls_sessions_total": ("counter", "Directions of sessions that the kernel has taken."),
    "kernel_tls_errors_total": ("counter", "What went wrong in the kernel, by what it was."),
    "kernel_tls_rekeys_total": ("counter", "Key changes in the kernel, by how they went."),
    "process_up": ("gauge", "1 for a process that does its work."),
    "process_restarts_total": ("counter", "How often a process was replaced."),
    "process_resident_memory_bytes": ("gauge", "RSS; shared pages count for each process."),
    "process_proportional_memory_bytes": ("gauge", "PSS; shared pages are divided: add these up."),
    "generation": ("gauge", "Of the configuration that is served."),
    "reloads_total": ("counter", "Reloads by result."),
    "last_reload_success_timestamp_seconds": ("gauge", "When a reload last worked; 0 for never."),
    "certificate_expiry_timestamp_seconds": ("gauge", "When a listener's certificate ends."),
    "log_lines_dropped_total": ("counter", "Lines that could not be logged."),
}
"""Every metric of ours, in the order in which they are written."""

_PLAIN: Final = {
    "connections_relayed_total": "relayed",
    "connections_relaying": "active",
    "sessions_handed_over_total": "handed_over",
    "received_bytes_total": "bytes_in",
    "sent_bytes_total": "bytes_out",
    "handshakes_resumed_total": "resumed",
    "connect_failures_total": "connect_failures",
    "kernel_tls_refused_total": "kernel_refused",
    "connections_moved_total": "moved",
    "log_lines_dropped_total": "log_dropped",
}
"""Metrics that are one plain count each."""


def _by(direction: str, mode: str) -> Labels:
    return (("direction", direction), ("mode", mode))


_KERNEL: Final[dict[str, tuple[str, Labels]]] = {
    "TlsCurrTxSw": ("kernel_tls_sessions", _by("tx", "software")),
    "TlsCurrRxSw": ("kernel_tls_sessions", _by("rx", "software")),
    "TlsCurrTxDevice": ("kernel_tls_sessions", _by("tx", "device")),
    "TlsCurrRxDevice": ("kernel_tls_sessions", _by("rx", "device")),
    "TlsTxSw": ("kernel_tls_sessions_total", _by("tx", "software")),
    "TlsRxSw": ("kernel_tls_sessions_total", _by("rx", "software")),
    "TlsTxDevice": ("kernel_tls_sessions_total", _by("tx", "device")),
    "TlsRxDevice": ("kernel_tls_sessions_total", _by("rx", "device")),
    "TlsDecryptError": ("kernel_tls_errors_total", (("reason", "decrypt"),)),
    "TlsDecryptRetry": ("kernel_tls_errors_total", (("reason", "decrypt_retry"),)),
    "TlsRxDeviceResync": ("kernel_tls_errors_total", (("reason", "device_resync"),)),
    "TlsRxNoPadViolation": ("kernel_tls_errors_total", (("reason", "no_pad_violation"),)),
    "TlsRxRekeyOk": ("kernel_tls_rekeys_total", (("direction", "rx"), ("result", "ok"))),
    "TlsRxRekeyError": ("kernel_tls_rekeys_total", (("direction", "rx"), ("result", "failed"))),
    "TlsTxRekeyOk": ("kernel_tls_rekeys_total", (("direction", "tx"), ("result", "ok"))),
    "TlsTxRekeyError": ("kernel_tls_rekeys_total", (("direction", "tx"), ("result", "failed"))),
}
"""What the kernel counts, for all of its programs (in this network namespace); names of ours."""


def render(status: Status) -> bytes:
    """Write all metrics; one without a sample is left out."""
    # A series that came twice would make the whole page unreadable: a dictionary keeps one.
    series: dict[str, dict[Labels, Value]] = {name: {} for name in METRICS}
    for name, labels, value in samples(status):
        series.setdefault(name, {})[labels] = value
    return "".join(_family(name, each) for name, each in series.items() if each).encode()


def samples(status: Status) -> Iterator[Sample]:
    """Give all samples of a status."""
    yield from _instance(status)
    yield from _connections(status)
    yield from _handshakes(status)
    yield from _processes(status)
    yield from _kernel(status)
    yield from _gauges(status)


def _kernel(status: Status) -> Iterator[Sample]:
    for name, (metric, labels) in _KERNEL.items():
        if name in status.kernel_tls:
            yield metric, labels, status.kernel_tls[name]


def _instance(status: Status) -> Iterator[Sample]:
    reloads = status.reloads
    yield "build_info", (("version", status.version),), 1
    for state in get_args(State):
        yield "state", (("state", state),), state == status.state
    yield "ready", (), not status.unready()
    yield "uptime_seconds", (), status.uptime
    yield "generation", (), status.generation
    yield "reloads_total", (("result", "ok"),), reloads.ok
    yield "reloads_total", (("result", "failed"),), reloads.failed
    yield "last_reload_success_timestamp_seconds", (), reloads.last
    for each in status.certificates:
        labels = (
            ("listener", each.listener),
            ("subject", each.subject),
            ("fingerprint", each.fingerprint),
        )
        yield "certificate_expiry_timestamp_seconds", labels, each.not_after


def _connections(status: Status) -> Iterator[Sample]:
    for each in status.listeners:
        labels = (("listener", each.name or each.listen),)
        yield "connections_accepted_total", labels, each.accepted
        yield "connections_active", labels, each.active
    for reason, count in status.refused.items():
        yield "connections_refused_total", (("reason", reason),), count
    for name, field in _PLAIN.items():
        yield name, (), status.totals.get(field, 0)
    yield "connect_duration_seconds", (), status.connect_seconds
    yield "move_stall_seconds", (), status.stall_seconds


def _handshakes(status: Status) -> Iterator[Sample]:
    names = ("outcome", "version", "ciphersuite", "group")
    for each in status.handshakes:
        values = ("granted", each.version, each.ciphersuite, each.group)
        yield "handshakes_total", tuple(zip(names, values, strict=True)), each.count
    for outcome in ("denied", "failed"):
        labels = tuple(zip(names, (outcome, "", "", ""), strict=True))
        yield "handshakes_total", labels, status.totals.get(f"handshakes_{outcome}", 0)
    for failure in status.failures:
        labels = (("outcome", failure.outcome), ("reason", failure.reason))
        yield "handshake_failures_total", labels, failure.count
    yield "handshakes_in_progress", (), status.handshaking
    yield "handshake_duration_seconds", (), status.handshake_seconds


def _processes(status: Status) -> Iterator[Sample]:
    for each in (each for each in status.processes if each.current):
        labels = (("process", each.name), ("role", each.role))
        yield "process_up", labels, bool(each.pid and each.ready)
        yield "process_restarts_total", labels, each.restarts
        if each.resident:
            yield "process_resident_memory_bytes", labels, each.resident
        if each.proportional:
            yield "process_proportional_memory_bytes", labels, each.proportional


def _gauges(status: Status) -> Iterator[Sample]:
    """Give what workers measure, under no name of METRICS but the one that is theirs."""
    for each in status.gauges:
        if each.name not in METRICS or each.name == SESSIONS:
            yield each.name, tuple({**each.labels, "process": each.process}.items()), each.value


def _family(name: str, series: dict[Labels, Value]) -> str:
    """Write one metric."""
    kind, text = METRICS.get(name, ("gauge", "As each process sees it."))
    lines = [f"# HELP {PREFIX}{name} {text}\n# TYPE {PREFIX}{name} {kind}\n"]
    for labels, value in series.items():
        if isinstance(value, Histogram):
            lines += _histogram(name, value)
        else:
            lines.append(_line(name, labels, value))
    return "".join(lines)


def _histogram(name: str, histogram: Histogram) -> Iterator[str]:
    counts = list(accumulate(histogram.counts))
    for bound, count in zip((*BOUNDS, "+Inf"), counts, strict=True):
        yield _line(f"{name}_bucket", (("le", str(bound)),), count)
    yield _line(f"{name}_sum", (), histogram.seconds)
    yield _line(f"{name}_count", (), counts[-1])


def _line(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{label}="{_escape(each)}"' for label, each in labels)
    # A whole number is written as one: 1763709600, not 1763709600.0 or 1.7637096e+09.
    number = int(value) if value == int(value) else value
    return f"{PREFIX}{name}{{{pairs}}} {number}\n"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
