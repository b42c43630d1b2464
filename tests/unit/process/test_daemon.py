from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handfast.errors import ConfigError
from handfast.process.daemon import require_logfile

# What the daemon does; PATH is a FIFO over which it tells of itself and then waits to be let go.
_PROGRAM = """
import json, os, sys, time
from pathlib import Path
from handfast.process.daemon import daemonize
path, outcome, seconds = sys.argv[1:]
with open(path + ".inherited", "w") as inherited:
    os.set_inheritable(inherited.fileno(), True)
    print("printed before", flush=False)
    launch = daemonize(float(seconds))
    print("printed by the daemon", flush=True)
    os.write(2, b"written by the daemon")
    facts = {
        "pid": os.getpid(), "session": os.getsid(0), "group": os.getpgid(0),
        "directory": os.getcwd(),
        "descriptors": {n: os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                        if os.path.lexists(f"/proc/self/fd/{n}")},
    }
    with open(path, "w") as fifo:
        json.dump(facts, fifo)
    match outcome:
        case "succeeded":
            launch.succeeded()
            launch.failed("too late", 2)
        case "failed":
            launch.failed("handfast: line one\\nhandfast: line two", 2)
        case "dies":
            os._exit(7)
    while os.path.exists(path):
        time.sleep(0.02)
    os._exit(0)
"""


class Daemon:
    """A command that has become a daemon, and what that told of itself."""

    def __init__(self, directory: Path, outcome: str, seconds: float) -> None:
        self.path = directory / "fifo"
        os.mkfifo(self.path)
        self.command = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(self.path), outcome, str(seconds)],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.facts = json.loads(self.path.read_text())
        self.pidfd = os.pidfd_open(self.facts["pid"])

    def finish(self) -> tuple[int, str, str]:
        out, err = self.command.communicate(timeout=30)
        return self.command.returncode, out, err

    def gone(self, seconds: float = 10.0) -> bool:
        """Tell whether the daemon ends within some seconds."""
        return bool(select.select([self.pidfd], [], [], seconds)[0])


Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Daemon] = []

    def _start(outcome: str, seconds: float = 30.0) -> Daemon:
        started.append(Daemon(tmp_path, outcome, seconds))
        return started[-1]

    yield _start
    for each in started:
        each.path.unlink(missing_ok=True)
        assert each.gone()
        os.close(each.pidfd)


def test_the_command_ends_with_0_when_the_daemon_serves(start: Start) -> None:
    daemon = start("succeeded")
    assert daemon.finish() == (0, "printed before\n", "")
    assert not daemon.gone(0)


def test_the_command_ends_as_in_the_foreground_when_the_start_fails(start: Start) -> None:
    daemon = start("failed")
    assert daemon.finish() == (2, "printed before\n", "handfast: line one\nhandfast: line two\n")


def test_a_daemon_that_dies_before_it_serves_is_a_failure(start: Start) -> None:
    code, _, text = start("dies").finish()
    assert (code, text) == (1, "handfast: the daemon ended while it was starting; see its log\n")


def test_a_daemon_that_takes_too_long_is_a_failure_and_ends(start: Start) -> None:
    daemon = start("silent", 0.5)
    code, _, text = daemon.finish()
    assert (code, text.startswith("handfast: the daemon did not start in time")) == (1, True)
    assert daemon.gone()


def test_a_daemon_has_left_its_caller_altogether(start: Start) -> None:
    daemon = start("succeeded")
    daemon.finish()
    facts = daemon.facts
    assert facts["session"] == facts["group"] != facts["pid"]
    assert facts["session"] != os.getsid(0)
    assert facts["directory"] == "/"
    assert [facts["descriptors"].pop(n) for n in "012"] == ["/dev/null"] * 3
    assert [each.partition(":")[0] for each in facts["descriptors"].values()] == ["pipe"]


@pytest.mark.parametrize("logfile", [None, "-"])
def test_a_daemon_may_not_log_to_standard_output(logfile: str | None) -> None:
    with pytest.raises(ConfigError, match="set `logfile:` to a file, syslog or journald"):
        require_logfile(logfile)


@pytest.mark.parametrize("logfile", ["handfast.log", "syslog", "journald"])
def test_a_daemon_may_log_to_anything_else(logfile: str) -> None:
    require_logfile(logfile)
