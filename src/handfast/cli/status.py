"""`handfast status`."""

from __future__ import annotations

import argparse
import sys

import msgspec

from handfast.cli.loading import control_of
from handfast.errors import HandfastError
from handfast.process.commands import Request, Status, ask


def run(options: argparse.Namespace) -> int:
    """Ask, and print for people or for programs."""
    answer = ask(control_of(options), Request("status"))
    if answer.status is None:
        raise HandfastError(answer.error or "no status in the answer")
    if options.json:
        text = msgspec.json.format(msgspec.json.encode(answer.status), indent=2).decode() + "\n"
    else:
        text = describe(answer.status)
    sys.stdout.write(text)
    return 0


def describe(status: Status) -> str:
    """Write a status for people."""
    lines = [
        f"handfast {status.version}, pid {status.pid}, {status.state}, up {status.uptime:.0f} s, "
        + status.config
    ]
    lines += [f"  {each['listen']} -> {each['target']}" for each in status.listeners]
    lines += ["", f"  {'process':<14}{'pid':>8}  counters"]
    for process in status.processes:
        counters = " ".join(f"{name}={count}" for name, count in process.counters.items() if count)
        lines.append(f"  {process.name:<14}{process.pid:>8}  {counters}".rstrip())
    totals = " ".join(f"{name}={count}" for name, count in status.totals.items())
    return "\n".join([*lines, "", f"  total: {totals}", ""])
