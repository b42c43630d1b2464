"""Where the log goes, while everything that writes it is in a sandbox."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from harness.clients import connect, read_to_end
from harness.front import Front
from harness.homes import TIMEOUT
from harness.instance import parse_line, wait_for
from harness.processes import kill_and_wait

if TYPE_CHECKING:
    import ssl

    from conftest import Certificates
    from features.conftest import Targets

SYSLOG = """
mount -t tmpfs none "$0"
for name in null zero random urandom; do
    touch "$0/$name" && mount --bind "/dev/$name" "$0/$name"
done
ln -s /proc/self/fd "$0/fd"
ln -s "$1" "$0/log"
mount -n --move "$0" /dev
"""
JOURNAL = """
mount -t tmpfs none "$0"
mkdir -p "$0/systemd/journal"
ln -s "$1" "$0/systemd/journal/socket"
mount -n --move "$0" /run
"""


class Listening:
    """What stands in for a log's daemon: a socket for datagrams, a line each."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self.datagrams: list[bytes] = []

    def wait(self, text: bytes) -> bytes:
        """Give the first datagram that has this text, and wait for it."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            for each in self.datagrams:
                if text in each:
                    return each
            self._sock.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self.datagrams.append(self._sock.recv(1 << 16))
            except TimeoutError:
                raise AssertionError(f"no {text!r} in {self.datagrams}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()


Run = Callable[..., Front]


@pytest.fixture
def run(tmp_path: Path, targets: Targets, certificates: Certificates) -> Iterator[Run]:
    """Run handfast with a log that is not its standard output: `run("syslog", script)`.

    `script` makes /dev or /run anew, for handfast alone; the daemon's socket is tmp_path/socket.
    """
    with ExitStack() as stack:

        def start(logfile: str, script: str = "") -> Front:
            place = tmp_path / "mounted"
            place.mkdir()
            settings: dict[str, Any] = {
                "nworkers": 1,
                "control": str(tmp_path / "control.sock"),
                "logfile": logfile,
                "listeners": [
                    {
                        "listen": "127.0.0.1:0",
                        "target": targets.says("hello"),
                        "certificates": [
                            {"chain": str(certificates.chain), "key": str(certificates.key)}
                        ],
                    }
                ],
            }
            command = f'set -e\n{script}\nshift\nexec "$@"'
            wrapper = ("unshare", "--mount", "sh", "-c", command, str(place), f"{tmp_path}/socket")
            front = Front(tmp_path / "handfast.yaml", settings, wrapper=wrapper)
            stack.callback(front.stop)
            return front

        yield start


def port_in(text: bytes) -> int:
    found = re.search(rb"listen_port=(\d+)", text)
    assert found
    return int(found[1])


def visit(port: int, context: ssl.SSLContext) -> None:
    """Connect once, so that an acceptor and a relay have something to tell."""
    with connect(port, context) as client:
        assert read_to_end(client) == b"hello"


def test_syslog_gets_the_lines_of_every_process(
    run: Run, tmp_path: Path, context: ssl.SSLContext
) -> None:
    with Listening(tmp_path / "socket") as daemon:
        front = run("syslog", SYSLOG)
        port = port_in(daemon.wait(b"event=listening"))

        visit(port, context)

        granted = daemon.wait(b"outcome=granted")
        ended = daemon.wait(b"subevent=client_disconnect")
        pids = front.pids()
    form = rb"<30>[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d handfast\[(\d+)\]: timestamp="
    for line, name in ((granted, "acceptor-1"), (ended, "relay-1")):
        match = re.match(form, line)
        assert match, line
        assert int(match[1]) == pids[name]


def test_syslog_that_was_restarted_gets_the_lines_again_and_hears_what_it_missed(
    run: Run, tmp_path: Path, context: ssl.SSLContext
) -> None:
    with Listening(tmp_path / "socket") as first:
        run("syslog", SYSLOG)
        port = port_in(first.wait(b"event=listening"))
    visit(port, context)  # nobody listens

    with Listening(tmp_path / "socket") as second:

        def heard() -> bool:
            visit(port, context)
            try:
                second._sock.settimeout(0.1)
                second.datagrams.append(second._sock.recv(1 << 16))
            except TimeoutError:
                return False
            return True

        wait_for(heard, "lines arrive again")
        assert b"lines=" in second.wait(b"event=log_dropped")


def test_the_journal_gets_each_field(run: Run, tmp_path: Path, context: ssl.SSLContext) -> None:
    with Listening(tmp_path / "socket") as daemon:
        run("journald", JOURNAL)
        port = port_in(daemon.wait(b"HANDFAST_EVENT=listening"))

        visit(port, context)

        lines = daemon.wait(b"HANDFAST_OUTCOME=granted").splitlines()
    assert b"PRIORITY=6" in lines
    assert b"SYSLOG_IDENTIFIER=handfast" in lines
    assert b"HANDFAST_EVENT=auth" in lines
    assert b"HANDFAST_SNI=localhost" in lines
    assert any(each.startswith(b"MESSAGE=timestamp=") for each in lines)


def lines_of(path: Path) -> list[dict[str, str]]:
    return [parse_line(line) for line in path.read_text().splitlines()]


def wait_in(path: Path, event: str, **fields: str) -> dict[str, str]:
    """Wait for an event in a log file."""

    def found() -> dict[str, str] | None:
        wanted = {"event": event, **fields}
        lines = lines_of(path) if path.exists() else []
        return next((each for each in lines if wanted.items() <= each.items()), None)

    event_found: dict[str, str] = wait_for(found, f"{event} {fields} in {path}")
    return event_found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "handfast.log"


def test_after_sigusr1_every_process_writes_to_the_new_file(
    run: Run, log: Path, context: ssl.SSLContext
) -> None:
    front = run(str(log))
    port = int(wait_in(log, "listening")["listen_port"])
    visit(port, context)
    wait_in(log, "proxy", subevent="client_disconnect")
    old = log.rename(log.with_suffix(".1"))

    front.signal(signal.SIGUSR1)
    wait_for(log.exists, "the new file is there")
    visit(port, context)

    wait_in(log, "proxy", subevent="client_disconnect")
    total = [*lines_of(old), *lines_of(log)]
    assert len([each for each in total if each.get("outcome") == "granted"]) == 2


def test_processes_that_start_after_a_rotation_write_to_the_new_file(
    run: Run, log: Path, context: ssl.SSLContext
) -> None:
    front = run(str(log))
    port = int(wait_in(log, "listening")["listen_port"])
    old = log.rename(log.with_suffix(".1"))
    front.signal(signal.SIGUSR1)
    wait_for(log.exists, "the new file is there")

    kill_and_wait(front.pids()["relay-1"])
    assert front.reload().returncode == 0
    wait_for(lambda: front.status()["processes"][-1]["ready"], "the relay is back")
    visit(port, context)

    wait_in(log, "auth", outcome="granted")
    wait_in(log, "proxy", subevent="client_disconnect")
    assert not [each for each in lines_of(old) if each["event"] == "auth"]


def test_a_new_file_that_cannot_be_opened_leaves_the_log_where_it_was(
    run: Run, log: Path, context: ssl.SSLContext
) -> None:
    front = run(str(log))
    port = int(wait_in(log, "listening")["listen_port"])
    old = log.rename(log.with_suffix(".1"))
    log.mkdir()

    front.signal(signal.SIGUSR1)

    told = wait_in(old, "system_error")
    assert str(log) in told["error_msg"] + told.get("error_desc", "")
    visit(port, context)
    wait_in(old, "auth", outcome="granted")
