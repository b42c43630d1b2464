from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from handfast.cli.status import describe, size, span
from handfast.observe.counters import Histogram
from handfast.observe.status import (
    CertificateExpiry,
    ListenerStatus,
    ProcessStatus,
    Reloads,
    Status,
)
from handfast.process.commands import Answer

NOW = 1_763_709_600.0
TIMEOUT = 20.0
STATUS = Status(
    version="1.2.3",
    pid=77,
    uptime=7200.0,
    state="serving",
    config="/etc/handfast.yaml",
    listeners=(
        ListenerStatus("0.0.0.0:443", "tcp://a:1", "web", 0, accepted=90, active=4),
        ListenerStatus("[::]:8443", "unix:/run/b", "admin", 1, accepted=1234567),
    ),
    processes=(
        ProcessStatus("supervisor", 77, uptime=7200.0, resident=40 << 20, proportional=12_300_000),
        ProcessStatus("relay-1", 0, restarts=3),
        ProcessStatus("relay-2", 79, {"active": 4}, ready=False),
    ),
    totals={"accepted": 1000, "active": 4, "handshakes_granted": 900, "bytes_out": 5_000_000},
    generation=4,
)


def test_people_see_the_state_the_listeners_and_the_processes() -> None:
    text = describe(STATUS, NOW)

    assert text.startswith(
        "handfast 1.2.3, pid 77, serving, up 2 h\n/etc/handfast.yaml, generation 4\n"
    )
    assert "  connections  4 active, 1000 accepted\n" in text
    assert "  traffic      0 B in, 5 MB out\n" in text
    assert "0.0.0.0:443 -> tcp://a:1" in text
    assert "refused" not in text
    assert "certificate" not in text


def test_columns_are_aligned() -> None:
    lines = describe(STATUS, NOW).splitlines()

    header = next(line for line in lines if line.startswith("  process"))
    rows = lines[lines.index(header) + 1 :][:3]
    end = header.index("state") + len("state")
    assert [line[:end].split()[-1] for line in rows] == ["up", "dead", "starting"]
    listeners = [line for line in lines if " -> " in line]
    assert len({len(line) for line in listeners}) == 1


def test_a_dead_process_has_its_place() -> None:
    line = next(each for each in describe(STATUS, NOW).splitlines() if "relay-1" in each)

    assert line.split() == ["relay-1", "-", "dead", "3"]


def test_a_process_of_a_generation_that_goes_is_said_to_leave() -> None:
    old = ProcessStatus("acceptor-1", 80, current=False)
    text = describe(replace(STATUS, processes=(old,)), NOW)

    assert text.splitlines()[-1].split()[:3] == ["acceptor-1", "80", "leaving"]


def test_the_next_certificate_to_expire_comes_first() -> None:
    certificates = (
        CertificateExpiry("web", "CN=a", "ab" * 32, NOW + 86400 * 12),
        CertificateExpiry("admin", "CN=b", "cd" * 32, NOW - 7200),
    )
    lines = describe(replace(STATUS, certificates=certificates), NOW).splitlines()

    assert lines[-2].split() == ["admin", "CN=b", "cd" * 8, "EXPIRED", "2", "h", "ago"]
    assert lines[-1].split() == ["web", "CN=a", "ab" * 8, "in", "12", "d"]


def test_a_reload_that_failed_is_told_with_its_reason() -> None:
    reloads = Reloads(ok=3, failed=1, last=NOW - 300, error="web.pem: no such file")
    text = describe(replace(STATUS, reloads=reloads), NOW)

    assert "generation 4, loaded 5 min ago\n" in text
    assert "the last reload failed: web.pem: no such file\n" in text


def test_sessions_that_went_elsewhere_are_told() -> None:
    totals = {**STATUS.totals, "handed_over": 7, "moved": 3}
    text = describe(replace(STATUS, totals=totals), NOW)

    assert "7 handed over, 3 moved to other relays\n" in text


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    certificates = (CertificateExpiry("web", "CN=\x1b[2J\x9b", "ab" * 32, NOW + 60),)
    text = describe(replace(STATUS, certificates=certificates), NOW)

    assert "CN=?[2J?" in text


def test_rates_are_those_since_the_status_before() -> None:
    more = {**STATUS.totals, "accepted": 1050, "handshakes_granted": 910, "bytes_out": 9_000_000}
    text = describe(replace(STATUS, uptime=7202.0, totals=more), NOW, STATUS)

    assert "1050 accepted (25.0/s)" in text
    assert "910 granted (5.0/s)" in text
    assert "9 MB out (2.0 MB/s)" in text


def test_another_handfast_gives_no_rates() -> None:
    assert "/s)" not in describe(replace(STATUS, pid=78, uptime=7201.0), NOW, STATUS)


def test_durations_are_bounds_of_the_half_and_of_nearly_all() -> None:
    histogram = Histogram()
    for seconds in [0.004] * 99 + [0.2]:
        histogram.add(seconds)
    slow = Histogram()
    slow.add(60)
    text = describe(replace(STATUS, handshake_seconds=histogram, connect_seconds=slow), NOW)

    assert "half in 5 ms, 99% in 5 ms" in text
    assert "half in more than 10 s" in text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (1_234_567, "1.23 MB"),
     (10**15, "1 PB"), (10**19, "1e+04 PB")],
)  # fmt: skip
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.2, "0 s"), (59, "59 s"), (60, "1 min"), (86400, "1 d"), (864000, "10 d")],
)
def test_durations_have_their_largest_unit(seconds: float, text: str) -> None:
    assert span(seconds) == text


class Service:
    """Answers like a handfast: one connection and one second older each time."""

    def __init__(self, directory: Path) -> None:
        path = directory / "control.sock"
        self.config = directory / "handfast.yaml"
        self.config.write_text(
            f"control: {path}\nlisteners:\n  - listen: 127.0.0.1:0\n    target: tcp://127.0.0.1:1\n"
            "    certificates:\n      - {chain: a.pem, key: b.pem}\n"
        )
        self.watches: list[subprocess.Popen[bytes]] = []
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(path))
        self.listening.listen()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        status = STATUS
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listening.accept()
                with client:
                    client.recv(4096)
                    client.sendall(msgspec.json.encode(Answer(status=status)) + b"\n")
                accepted = status.totals["accepted"] + 1
                status = replace(
                    status, uptime=status.uptime + 1, totals={**status.totals, "accepted": accepted}
                )

    def close(self) -> None:
        """Stop listening, the first time."""
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listening.close()

    def watch(self, *options: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-m", "handfast", "status", "-c", str(self.config)]
        process = subprocess.Popen([*arguments, "--watch", *options], stdout=stdout)
        self.watches.append(process)
        return process


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.close()
    for watch in made.watches:
        watch.kill()
        watch.wait(TIMEOUT)
        if watch.stdout is not None:
            watch.stdout.close()


def read_until(descriptor: int, text: bytes, count: int) -> bytes:
    data = b""
    deadline = time.monotonic() + TIMEOUT
    while data.count(text) < count:
        left = deadline - time.monotonic()
        assert select.select([descriptor], [], [], max(0.0, left))[0], data
        piece = os.read(descriptor, 65536)
        assert piece, data
        data += piece
    return data


def interrupt(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGINT)
    return process.wait(TIMEOUT)


def test_a_watch_prints_one_block_a_second_to_a_pipe_and_ends_well(service: Service) -> None:
    process = service.watch()
    assert process.stdout is not None
    began = time.monotonic()

    data = read_until(process.stdout.fileno(), b"handfast 1.2.3", 3)

    assert time.monotonic() - began > 1.9
    assert b"\x1b" not in data
    assert b"1001 accepted (1.0/s)" in data
    assert interrupt(process) == 0


def test_a_watch_for_programs_prints_one_line_a_second(service: Service) -> None:
    process = service.watch("--json")
    assert process.stdout is not None

    lines = read_until(process.stdout.fileno(), b"\n", 2).splitlines()

    assert [json.loads(line)["totals"]["accepted"] for line in lines[:2]] == [1000, 1001]
    assert interrupt(process) == 0


def test_a_watch_redraws_a_terminal_within_its_size(service: Service) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (10, 40))
    process = service.watch(stdout=theirs)
    os.close(theirs)

    data = read_until(ours, b"\x1b[H\x1b[J", 2)

    frame = data.split(b"\x1b[H\x1b[J")[1].decode()
    assert len(frame.splitlines()) == 9
    assert max(len(line) for line in frame.splitlines()) <= 40
    assert interrupt(process) == 0
    os.close(ours)


def test_a_watch_ends_with_1_when_handfast_has_ended(service: Service) -> None:
    process = service.watch("--json")
    assert process.stdout is not None
    read_until(process.stdout.fileno(), b"\n", 1)

    service.close()

    assert process.wait(TIMEOUT) == 1
