"""`handfast status`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final

import msgspec

from handfast.cli.loading import control_of
from handfast.errors import HandfastError
from handfast.observe.counters import BOUNDS, Histogram
from handfast.observe.status import ProcessStatus, Status
from handfast.process.commands import Request, ask

_INTERVAL: Final = 1.0
_REDRAW: Final = "\x1b[H\x1b[J"  # to the corner, and clear what is below
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_SPANS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def run(options: argparse.Namespace) -> int:
    """Ask, and print for people or for programs: once, or every second until Ctrl-C."""
    control = control_of(options)
    if not options.watch:
        status = _ask(control)
        _print(_json(status, indent=2) if options.json else describe(status, time.time()))
        return 0
    try:
        _watch(control, json=options.json)
    except KeyboardInterrupt:
        pass  # how a watch ends
    return 0


def _watch(control: Path, *, json: bool) -> None:
    """Print one status a second; a terminal shows the last one in place of the one before."""
    before: Status | None = None
    while True:
        began = time.monotonic()
        status = _ask(control)
        if json:
            _print(_json(status))
        elif sys.stdout.isatty():
            _print(_REDRAW + _fitting(describe(status, time.time(), before)))
        else:
            _print(describe(status, time.time(), before) + "\n")
        before = status
        time.sleep(max(0.0, began + _INTERVAL - time.monotonic()))


def _ask(control: Path) -> Status:
    answer = ask(control, Request("status"))
    if answer.status is None:
        raise HandfastError(answer.error or "no status in the answer")
    return answer.status


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _json(status: Status, indent: int = -1) -> str:
    """Write on one line, or with an indent on several."""
    return msgspec.json.format(msgspec.json.encode(status), indent=indent).decode() + "\n"


def _fitting(text: str) -> str:
    """Cut what the terminal has no room for; it would scroll."""
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    return "\n".join(line[:columns] for line in text.splitlines()[: rows - 1]) + "\n"


def describe(status: Status, now: float, before: Status | None = None) -> str:
    """Write a status for people; with the one before it, rates too. `now` is in Unix seconds."""
    paragraphs = (
        _head(status, now),
        _counts(status, before),
        _listeners(status),
        _processes(status),
        _certificates(status, now),
    )
    lines = "\n\n".join("\n".join(each) for each in paragraphs if each).split("\n")
    # A certificate's subject, for one, may have anything in it; a terminal obeys some of that.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines) + "\n"


def _head(status: Status, now: float) -> list[str]:
    reloads = status.reloads
    loaded = f", loaded {span(now - reloads.last)} ago" if reloads.last else ""
    lines = [
        f"handfast {status.version}, pid {status.pid}, {status.state}, up {span(status.uptime)}",
        f"{status.config}, generation {status.generation}{loaded}",
    ]
    if reloads.error:
        lines.append(f"the last reload failed: {reloads.error}")
    return lines


def _counts(status: Status, before: Status | None) -> list[str]:
    def total(name: str) -> int:
        return status.totals.get(name, 0)

    def rate(name: str, unit: str = "", scale: float = 1.0) -> str:
        if before is None or before.pid != status.pid or before.uptime >= status.uptime:
            return ""
        more = total(name) - before.totals.get(name, 0)
        return f" ({more / scale / (status.uptime - before.uptime):.1f}{unit}/s)"

    refused = sum(status.refused.values())
    rows = (
        (
            "connections",
            f"{total('active')} active",
            f"{total('accepted')} accepted{rate('accepted')}",
            f"{refused} refused" if refused else "",
        ),
        (
            "handshakes",
            f"{total('handshakes_granted')} granted{rate('handshakes_granted')}",
            f"{total('resumed')} of them resumed" if total("resumed") else "",
            f"{total('handshakes_denied')} denied",
            f"{total('handshakes_failed')} failed",
            _times(status.handshake_seconds),
        ),
        (
            "targets",
            f"{sum(status.connect_seconds.counts)} connected",
            f"{total('connect_failures')} failed",
            _times(status.connect_seconds),
        ),
        (
            "traffic",
            f"{size(total('bytes_in'))} in{rate('bytes_in', ' MB', 1e6)}",
            f"{size(total('bytes_out'))} out{rate('bytes_out', ' MB', 1e6)}",
        ),
        (
            "sessions",
            *(f"{count} {home}" for home, count in status.sessions().items() if count),
            f"{total('kernel_refused')} refused by the kernel" if total("kernel_refused") else "",
            f"{total('handed_over')} handed over" if total("handed_over") else "",
            f"{total('moved')} moved to other relays" if total("moved") else "",
        ),
        ("log", f"{total('log_dropped')} lines dropped" if total("log_dropped") else ""),
    )
    return [f"  {name:<13}{', '.join(filter(None, each))}" for name, *each in rows if any(each)]


def _listeners(status: Status) -> list[str]:
    rows = [
        (each.name, f"{each.listen} -> {each.target}", str(each.active), str(each.accepted))
        for each in status.listeners
    ]
    return _table(("listener", "", "active", "accepted"), rows, right=2)


def _processes(status: Status) -> list[str]:
    rows = [
        (
            each.name,
            str(each.pid or "-"),
            _state(each),
            span(each.uptime) if each.uptime else "",
            str(each.restarts or ""),
            size(each.proportional or each.resident) if each.resident else "",
            str(each.counters.get("active", "")),
        )
        for each in status.processes
    ]
    # PSS can be added up, RSS cannot: the kernel tells the one to root only.
    memory = "PSS" if any(each.proportional for each in status.processes) else "RSS"
    header = ("process", "pid", "state", "for", "restarts", memory, "active")
    return _table(header, rows, right=1)


def _state(process: ProcessStatus) -> str:
    if not process.pid:
        return "dead"
    if not process.current:
        return "leaving" if process.ready else "coming"
    return "up" if process.ready else "starting"


def _certificates(status: Status, now: float) -> list[str]:
    """Give the certificates, the next to expire first."""
    rows = [
        (each.listener, each.subject, each.fingerprint[:16], _expiry(each.not_after - now))
        for each in sorted(status.certificates, key=lambda each: each.not_after)
    ]
    return _table(("certificate", "subject", "fingerprint", "expires"), rows, right=9)


def _expiry(seconds: float) -> str:
    return f"in {span(seconds)}" if seconds > 0 else f"EXPIRED {span(-seconds)} ago"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: int) -> list[str]:
    """Align columns, those from number `right` on to the right; no rows give no table."""
    if not rows:
        return []
    every = [header, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(header))]
    lines = []
    for row in every:
        cells = [
            each.ljust(width) if column < right else each.rjust(width)
            for column, (each, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _times(histogram: Histogram) -> str:
    """Give the median and the 99th percentile, as far as the buckets tell."""
    if not sum(histogram.counts):
        return ""
    return f"half in {_within(histogram, 0.5)}, 99% in {_within(histogram, 0.99)}"


def _within(histogram: Histogram, share: float) -> str:
    wanted = share * sum(histogram.counts)
    for bound, count in zip(BOUNDS, accumulate(histogram.counts), strict=False):
        if count >= wanted:
            return f"{bound * 1000:g} ms"
    return f"more than {BOUNDS[-1]:g} s"


def size(count: float) -> str:
    """Write a number of bytes with three digits, in powers of 1000."""
    power = 0
    while count >= 999.5 and power < len(_UNITS) - 1:
        count /= 1000
        power += 1
    return f"{count:.3g} {_UNITS[power]}"


def span(seconds: float) -> str:
    """Write a duration by its largest unit."""
    for length, unit in _SPANS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
