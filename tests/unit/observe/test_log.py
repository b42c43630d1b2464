from __future__ import annotations

import fcntl
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.errors import ConfigError
from handfast.observe.events import Draining, Event, Level, Listening, Stopped, SystemFault
from handfast.observe.log import Log, batches
from handfast.observe.logfmt import LINE_MAX
from harness.logfmt import parse

LONG = Listening("/" + "s" * 250)


class Pipe:
    """A log into a small pipe, and what can be read from it."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        # Four pages: while one is free, poll says that there is room.
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4 * 4096)
        os.set_blocking(self.reader, False)
        self.log = Log(writer, Level.INFO, process_type="master")

    def read(self) -> list[dict[str, str]]:
        try:
            data = os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return []
        return [parse(line) for line in data.splitlines(keepends=True)]

    def fill(self) -> None:
        while not self.log.dropped:
            self.log.emit(LONG)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.log.close()
    os.close(pipe.reader)


def to_file(path: Path, level: Level = Level.INFO) -> Log:
    return Log.open(path, level, process_type="master", clock=lambda: 0.0)


def names(lines: list[dict[str, str]]) -> list[str]:
    return [line["event"] for line in lines]


def read(path: Path) -> list[dict[str, str]]:
    return [parse(line) for line in path.read_bytes().splitlines(keepends=True)]


def test_an_event_is_written_at_once_without_a_hook(tmp_path: Path) -> None:
    to_file(tmp_path / "log").emit(Stopped())
    assert names(read(tmp_path / "log")) == ["stopped"]


@pytest.mark.parametrize("event", [Stopped(), LONG])
def test_an_event_below_the_level_is_not_written(tmp_path: Path, event: Event) -> None:
    to_file(tmp_path / "log", Level.WARN).emit(event)
    assert read(tmp_path / "log") == []


def test_the_hook_is_called_once_per_flush(tmp_path: Path) -> None:
    log, calls = to_file(tmp_path / "log"), []
    log.on_pending = lambda: calls.append(1)
    log.emit(Stopped())
    log.emit(Stopped())
    assert (len(calls), read(tmp_path / "log")) == (1, [])
    log.flush()
    log.emit(Stopped())
    assert (len(calls), len(read(tmp_path / "log"))) == (2, 2)


def test_an_error_takes_what_is_pending_with_it(tmp_path: Path) -> None:
    log = to_file(tmp_path / "log")
    log.on_pending = lambda: None
    log.emit(Stopped())
    log.emit(SystemFault("no"))
    assert names(read(tmp_path / "log")) == ["stopped", "system_error"]


def test_pending_lines_are_bounded_though_nobody_flushes(tmp_path: Path) -> None:
    log = to_file(tmp_path / "log")
    log.on_pending = lambda: None
    for _ in range(1000):
        log.emit(Stopped())
    assert len(read(tmp_path / "log")) >= 512


def test_two_processes_append_to_one_file(tmp_path: Path) -> None:
    one, two = to_file(tmp_path / "log"), to_file(tmp_path / "log")
    one.emit(Stopped())
    two.emit(Draining(2.0))
    one.emit(Stopped())
    assert names(read(tmp_path / "log")) == ["stopped", "draining", "stopped"]


def test_a_file_is_not_for_everybody_and_not_for_children(tmp_path: Path) -> None:
    log = to_file(tmp_path / "log")
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) & 0o137 == 0
    assert not os.get_inheritable(log.fileno())


def test_a_file_that_cannot_be_opened_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing/log: cannot open the log file \(No such file"):
        to_file(tmp_path / "missing" / "log")


def test_standard_output_stays_open_after_close(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log.open(None, Level.INFO, process_type="master")
    log.emit(Stopped())
    log.close()
    os.write(1, b"still open\n")
    assert capfd.readouterr().out.endswith("event=stopped\nstill open\n")


def test_a_full_disk_drops_and_counts() -> None:
    log = Log(os.open("/dev/full", os.O_WRONLY), Level.INFO, process_type="master")
    log.emit(Stopped())
    log.emit(Stopped())
    assert log.dropped == 2
    log.close()


def test_a_pipe_without_reader_drops_and_counts() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = Log(writer, Level.INFO, process_type="master")
    log.emit(Stopped())
    assert log.dropped == 1
    log.close()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_pipe_drops_and_reports_it_when_it_is_read(pipe: Pipe, blocking: bool) -> None:
    os.set_blocking(pipe.log.fileno(), blocking)
    pipe.fill()
    pipe.log.emit(LONG)
    assert set(names(pipe.read())) == {"listening"}
    pipe.log.emit(Stopped())
    pipe.log.emit(Stopped())
    after = pipe.read()
    assert names(after) == ["log_dropped", "stopped", "stopped"]
    assert (after[0]["lines"], after[0]["level"], pipe.log.dropped) == ("2", "WARN", 2)


def test_losses_are_told_though_nothing_else_is_to_be_said(pipe: Pipe) -> None:
    asked: list[None] = []
    pipe.log.on_lost = lambda: asked.append(None)
    pipe.fill()
    lost = pipe.log.dropped
    pipe.read()

    assert asked
    pipe.log.flush()

    (report,) = pipe.read()
    assert (report["event"], report["lines"]) == ("log_dropped", str(lost))
    asked.clear()
    pipe.log.flush()
    assert (asked, pipe.read()) == ([], [])


def test_every_line_is_written_or_counted(pipe: Pipe) -> None:
    pipe.log.on_pending = lambda: None
    for _ in range(100):
        pipe.log.emit(LONG)
    pipe.log.flush()
    assert len(pipe.read()) + pipe.log.dropped == 100


def test_a_line_that_was_torn_does_not_spoil_the_next(tmp_path: Path) -> None:
    # A file size limit is how a plain file takes part of a write.
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _tear(tmp_path / "log")
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    assert names([parse(lines[0]), *map(parse, lines[2:])]) == ["stopped", "log_dropped", "stopped"]
    assert b"event=draining" not in lines[1]


def test_behind_a_full_disk_a_line_does_not_follow_what_another_process_left(
    tmp_path: Path,
) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _tear(tmp_path / "log", other=to_file(tmp_path / "log"))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    whole = [parse(line) for line in (lines[0], *lines[2:]) if line != b"\n"]
    assert names(whole) == ["stopped", "log_dropped", "stopped", "log_dropped", "stopped"]


def _tear(path: Path, other: Log | None = None) -> int:
    """Have the file take a part of a line only, and none of the `other` log's; then all again."""
    log = to_file(path)
    log.emit(Stopped())
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 60, hard))
    log.emit(Draining(2.0))
    if other is not None:
        other.emit(Draining(2.0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if other is not None:
        other.emit(Stopped())
    log.emit(Stopped())
    return 0 if log.dropped == 1 else 1


@given(st.lists(st.integers(1, LINE_MAX), max_size=40))
def test_batches_hold_whole_lines_and_no_more_than_the_size(sizes: list[int]) -> None:
    lines = [b"x" * (size - 1) + b"\n" for size in sizes]
    made = list(batches(lines, LINE_MAX))
    assert b"".join(data for data, _ in made) == b"".join(lines)
    assert all(len(data) <= LINE_MAX and data.count(b"\n") == count for data, count in made)
