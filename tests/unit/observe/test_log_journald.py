"""A real journald, in a mount namespace of its own, so that it takes nobody's place."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from handfast.observe.events import Auth, Level, Stopped
from handfast.observe.log import Log
from handfast.observe.sinks import Daemon, Journal, Syslog

_JOURNALD = Path("/lib/systemd/systemd-journald")
_START = f"""
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal
exec {_JOURNALD}
"""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not _JOURNALD.exists(), reason="root and Debian's systemd are needed"
)


class Journald:
    """A journald that runs, and what it has been told by this process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _START],
            stderr=subprocess.DEVNULL,
        )
        self.run = Path(f"/proc/{self.process.pid}/root/run")
        _wait(self._runs)

    def _runs(self) -> bool:
        # Before it is journald, it is still in this namespace, whose journal is not ours.
        program = Path(f"/proc/{self.process.pid}/exe").readlink().name
        return program == _JOURNALD.name and (self.run / "systemd/journal/dev-log").exists()

    def entries(self, number: int) -> list[dict[str, Any]]:
        """Wait for so many entries, and give them."""
        command = ["journalctl", "-D", str(self.run / "log/journal"), "-o", "json", "--all"]
        found: list[dict[str, Any]] = []

        def enough() -> bool:
            done = subprocess.run(
                [*command, f"_PID={os.getpid()}"], capture_output=True, text=True, check=False
            )
            found[:] = map(json.loads, done.stdout.splitlines())
            return len(found) >= number

        _wait(enough)
        return found


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"


@pytest.fixture
def journald() -> Iterator[Journald]:
    running = Journald()
    yield running
    running.process.terminate()
    running.process.wait(20)


def emit(sink: Daemon) -> None:
    log = Log(sink.open(), Level.INFO, process_type="worker", worker_id="relay-1", sink=sink)
    log.emit(Auth(subevent="handshake", outcome="denied", sni="a\nPRIORITY=0", client_port=7))
    log.emit(Stopped())
    log.close()
    assert log.dropped == 0


def test_journald_takes_every_field_and_no_forged_one(journald: Journald) -> None:
    emit(Journal(str(journald.run / "systemd/journal/socket")))

    first, second = journald.entries(2)

    assert first["HANDFAST_SNI"] == "a\nPRIORITY=0"
    assert (first["PRIORITY"], first["HANDFAST_CLIENT_PORT"]) == ("6", "7")
    assert first["SYSLOG_IDENTIFIER"] == "handfast"
    assert (second["HANDFAST_EVENT"], second["HANDFAST_WORKER_ID"]) == ("stopped", "relay-1")
    assert second["MESSAGE"].endswith(" level=INFO event=stopped")


def test_journald_understands_what_goes_to_syslog(journald: Journald) -> None:
    emit(Syslog(str(journald.run / "systemd/journal/dev-log")))

    first, second = journald.entries(2)

    assert 'sni="a\\nPRIORITY=0"' in first["MESSAGE"]
    assert (first["PRIORITY"], first["SYSLOG_FACILITY"]) == ("6", "3")
    assert (second["SYSLOG_IDENTIFIER"], second["SYSLOG_PID"]) == ("handfast", str(os.getpid()))
    assert second["MESSAGE"].endswith(" level=INFO event=stopped")
