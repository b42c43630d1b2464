"""`bench.costs` sees more work where there is some."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from bench import numbers
from bench.costs import per_unit
from bench.counters import traced
from bench.numbers import Numbers, compare

WASTEFUL: Final = """
import sys
from handfast.cli import main
from handfast.relay.pump import Flow

send = Flow._send

def ask_first(self, *arguments):
    self.sink.getpeername()
    return send(self, *arguments)

Flow._send = ask_first
sys.exit(main())
"""
"""A handfast that makes one system call more for each send."""


@pytest.mark.skipif(os.geteuid() != 0, reason="strace, to a confined process, is root's to attach")
def test_one_more_system_call_for_each_send_is_seen(public_path: Path) -> None:
    known = numbers.load()

    with traced(public_path, "user space", ("-c", WASTEFUL)) as (running, read):
        counts = {f"user space, {name}": n for name, n in per_unit(running, read, 3).items() if n}

    same = {name: known.counts[name] for name in counts}
    failures = compare(Numbers({}, same), Numbers({}, counts)).failures
    assert "user space, relay: system calls per small request: 8 instead of 6 (+33%)" in failures
    assert any("system calls per MiB down" in failure for failure in failures)
    assert not any("acceptor" in failure for failure in failures)
