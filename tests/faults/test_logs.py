"""A log that cannot be written: traffic goes on, and what was dropped is counted to the line."""

from __future__ import annotations

import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.instance import Instance, wait_for
from harness.load import WARM_UP, Churn, Streams, visit, warm_up
from harness.logfmt import parse
from harness.recorded import Recorded, configuration

if TYPE_CHECKING:
    from conftest import Certificates, Serve
    from faults.conftest import Begin
    from harness.backends import Backend

STREAMS = 4
WORKERS = 4
LINES_OF_A_VISIT = 5
"""Handshake, client and server connect, client and server disconnect."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KB, which only root may mount."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(file: Path) -> None:
    """Write to a file until its file system is full."""
    with file.open("ab", buffering=0) as stream:
        try:
            while stream.write(bytes(1024)):
                pass
        except OSError:
            pass


def all_is_told(running: Instance, port: int, context: ssl.SSLContext) -> int:
    """Have clients come until the log has told of every dropped line; give their number."""
    visits = 0

    def told() -> bool:
        nonlocal visits
        visit(port, context)
        visits += 1
        lines = sum(int(each["lines"]) for each in running.events("log_dropped"))
        return lines == dropped(running)

    wait_for(told, "every dropped line is told of")
    return visits


def dropped(running: Instance) -> int:
    """Give how many lines the workers count as dropped."""
    return int(running.status()["totals"]["log_dropped"])


def about_connections(lines: list[dict[str, str]]) -> int:
    """Count the lines that are about connections."""
    return sum(each.get("event") in {"auth", "proxy"} for each in lines)


def test_a_full_disk_stops_no_traffic_and_the_log_tells_how_many_lines_it_lacks(
    certificates: Certificates, backend: Backend, context: ssl.SSLContext, small_disk: Path
) -> None:
    yaml = configuration(backend.target, certificates.chain, certificates.key)
    ballast = small_disk / "ballast"
    with Recorded(small_disk, yaml) as running:
        port = running.port()
        warm_up(port, context)
        baseline = running.footprint()

        with Streams(port, context, STREAMS) as streams, Churn(port, context) as churn:
            fill(ballast)
            wait_for(lambda: dropped(running) > 100, "lines are dropped")
            churn.go_on()
            streams.go_on()
            ballast.unlink()
            churn.go_on()
            streams.finish()
            assert streams.broken == {}

        visits = all_is_told(running, port, context) + WARM_UP + STREAMS + churn.good
        running.check_footprint(baseline)
        assert churn.failures == []
        lost = dropped(running)
        running.stop()
        # Of a line that was cut, and counts as lost, the beginning is there: one of each worker.
        cut = about_connections(running.events()) + lost - LINES_OF_A_VISIT * visits
        assert 0 <= cut <= WORKERS
        mixed = [line for line in running.lines if line.count("timestamp=") > 1]
        assert mixed == []


def test_a_reader_that_stops_reading_stops_no_traffic_and_no_line_is_torn(
    serve: Serve, backend: Backend, context: ssl.SSLContext
) -> None:
    running = serve(backend.target)
    port = running.port()
    running.wait("listening")

    with Streams(port, context, STREAMS) as streams, Churn(port, context) as churn:
        wait_for(lambda: dropped(running) > 100, "the pipe is full, and lines are dropped")
        streams.go_on()
        churn.go_on()
        streams.finish()
        assert streams.broken == {}

    assert churn.failures == []
    visits = all_is_told(running, port, context) + STREAMS + churn.good
    lost = dropped(running)
    running.stop()
    lines = [parse(line.encode() + b"\n") for line in running.lines]
    assert about_connections(lines) + lost == LINES_OF_A_VISIT * visits


def test_a_log_that_is_rotated_under_load_lacks_no_line_and_tears_none(
    begin: Begin, context: ssl.SSLContext
) -> None:
    running = begin()
    port = running.port()
    baseline = running.footprint()
    files = [running.log]

    with Streams(port, context, STREAMS) as streams, Churn(port, context) as churn:
        for number in range(10):
            files.append(running.log.rename(running.log.with_suffix(f".{number}")))
            running.process.send_signal(signal.SIGUSR1)
            wait_for(running.log.exists, "the log is open again")
            churn.go_on(10)
        streams.finish()
        assert streams.broken == {}

    running.check_footprint(baseline)
    running.stop()
    lines = [parse(line) for each in files for line in each.read_bytes().splitlines(keepends=True)]
    assert churn.failures == []
    visits = WARM_UP + STREAMS + churn.good
    assert about_connections(lines) == LINES_OF_A_VISIT * visits
    assert all(each.stat().st_size for each in files)
