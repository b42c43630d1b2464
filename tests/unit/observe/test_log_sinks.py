from __future__ import annotations

import os
import pty
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from handfast.errors import ConfigError
from handfast.observe import sinks
from handfast.observe.events import (
    Auth,
    Draining,
    Event,
    Level,
    Listening,
    LogDropped,
    Stopped,
    SystemFault,
)
from handfast.observe.log import Log
from handfast.observe.sinks import Daemon, Journal, Line, Origin, Syslog, open_private, sink_for
from harness.logfmt import parse

LONG = Listening("/" + "s" * 250)
ORIGIN = Origin("worker", 4711, "relay-1")


class Listener:
    """A daemon's socket, and what has been sent to it."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.setblocking(False)

    def read(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.sock.recv(1 << 16))
            except BlockingIOError:
                return found


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "daemon")
    yield listener
    listener.sock.close()


@pytest.fixture
def log(tmp_path: Path, daemon: Listener) -> Iterator[Log]:
    log = to_daemon(Syslog(str(tmp_path / "daemon")))
    yield log
    log.close()


def to_daemon(sink: Daemon) -> Log:
    return Log(sink.open(), Level.INFO, process_type="master", sink=sink)


def line(event: Event) -> Line:
    return Line(b"the=line", event, ORIGIN, 1_000_000_000.0)


def fields(entry: bytes) -> dict[str, bytes]:
    """Read a journal entry, as the protocol says."""
    found = {}
    while entry:
        name, sep, _ = entry.partition(b"\n")[0].partition(b"=")
        entry = entry[len(name) + 1 :]
        if sep:
            value, _, entry = entry.partition(b"\n")
        else:
            size = int.from_bytes(entry[:8], "little")
            value, entry = entry[8 : 8 + size], entry[8 + size + 1 :]
        found[name.decode()] = value
    return found


@pytest.mark.parametrize(
    ("event", "priority"),
    [
        (SystemFault("no", fatal=True), 26),
        (SystemFault("no"), 27),
        (LogDropped(1), 28),
        (Stopped(), 30),
    ],
)
def test_a_syslog_datagram_is_what_glibc_would_send(event: Event, priority: int) -> None:
    at = time.localtime(1_000_000_000)
    clock = time.strftime("Sep %e %H:%M:%S", at)
    sent = Syslog("/dev/log").datagram(line(event))
    assert sent == f"<{priority}>{clock} handfast[4711]: the=line".encode()


def test_a_journal_entry_has_the_line_and_each_field() -> None:
    sent = Journal("/").datagram(line(Draining(2.5)))
    assert fields(sent) == {
        "MESSAGE": b"the=line",
        "PRIORITY": b"6",
        "SYSLOG_IDENTIFIER": b"handfast",
        "HANDFAST_EVENT": b"draining",
        "HANDFAST_PROCESS_TYPE": b"worker",
        "HANDFAST_WORKER_ID": b"relay-1",
        "HANDFAST_SECONDS": b"2.5",
    }


def test_a_peer_cannot_add_fields_to_a_journal_entry() -> None:
    event = Auth(subevent="handshake", outcome="denied", sni="a\nMESSAGE=forged\n", resumed=True)
    sent = fields(Journal("/").datagram(line(event)))
    assert sent["MESSAGE"] == b"the=line"
    assert sent["HANDFAST_SNI"] == b"a\nMESSAGE=forged\n"
    assert sent["HANDFAST_RESUMED"] == b"true"
    assert "HANDFAST_CLIENT_IP" not in sent


def test_a_journal_field_holds_the_bytes_of_the_peer_cut_like_the_line() -> None:
    event = Auth(subevent="handshake", outcome="denied", sni="\udcff" + "x" * 300)
    assert fields(Journal("/").datagram(line(event)))["HANDFAST_SNI"] == (
        b"\xff" + b"x" * 255 + "…+45".encode()
    )


def test_the_largest_event_fits_in_one_journal_datagram(tmp_path: Path, daemon: Listener) -> None:
    log = to_daemon(Journal(str(tmp_path / "daemon")))
    names = [f for f in Auth.__struct_fields__ if Auth.__annotations__[f] == "str"]
    given = dict.fromkeys(names, "\udcff\n" * 9999)
    log.emit(msgspec.convert({"subevent": "mtls", "outcome": "denied", **given}, Auth))
    log.close()
    sent = daemon.read()
    assert (len(sent), log.dropped) == (1, 0)
    assert len(fields(sent[0])) == len(names) + 7


def test_each_line_is_a_datagram_of_its_own(log: Log, daemon: Listener) -> None:
    log.on_pending = lambda: None
    log.emit(Stopped())
    log.emit(Draining(1.0))
    log.flush()
    sent = [parse(each.partition(b": ")[2] + b"\n") for each in daemon.read()]
    assert [each["event"] for each in sent] == ["stopped", "draining"]


@pytest.mark.parametrize("name", ["syslog", "journald"])
def test_a_daemon_that_does_not_run_is_a_configuration_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "SYSLOG_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(sinks, "JOURNAL_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"none: cannot log to .* \(No such file.*set `logfile:`"):
        Log.open(name, Level.INFO, process_type="master")


def test_a_daemon_that_does_not_read_costs_lines_and_no_time(log: Log, daemon: Listener) -> None:
    while not log.dropped:
        log.emit(Stopped())
    before = time.monotonic()
    for _ in range(1000):
        log.emit(Stopped())
    assert time.monotonic() - before < 1.0
    daemon.read()
    log.emit(Stopped())
    reported = daemon.read()[0].partition(b": ")[2] + b"\n"
    assert parse(reported)["lines"] == str(log.dropped)


def test_a_restarted_daemon_gets_the_lines_of_every_process_again(
    tmp_path: Path, log: Log, daemon: Listener
) -> None:
    sink = Syslog(str(tmp_path / "daemon"))
    heir = Log(os.dup(log.fileno()), Level.INFO, process_type="worker", sink=sink)
    assert not log.mend()
    daemon.sock.close()
    heir.emit(Stopped())
    assert log.mend()  # it is not there yet
    heir.emit(Stopped())
    again = Listener(tmp_path / "daemon")

    assert log.mend()
    assert not log.mend()
    heir.emit(Stopped())

    sent = [parse(each.partition(b": ")[2] + b"\n") for each in again.read()]
    again.sock.close()
    heir.close()
    assert [each["event"] for each in sent] == ["log_dropped", "stopped"]
    assert sent[0]["lines"] == "2"


def test_a_child_writes_to_the_same_sink_under_its_own_name(log: Log, daemon: Listener) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            heir = log.heir(Level.WARN, process_type="worker", worker_id="relay-1")
            heir.emit(Stopped())
            heir.emit(SystemFault("no"))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    (sent,) = daemon.read()
    assert f" handfast[{pid}]: timestamp=" in sent.decode()
    assert b" process_type=worker worker_id=relay-1 " in sent


def test_a_log_that_cannot_be_rotated_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "handfast.log"
    log = Log.open(path, Level.INFO, process_type="master")
    path.rename(tmp_path / "old")
    (tmp_path / "logs").rmdir()
    log.reopen()
    log.emit(Stopped())
    log.close()
    assert re.search(
        r"cannot open the log file .*; the log goes on where it was.*\n.*event=stopped\n",
        (tmp_path / "old").read_text(),
    )


def test_after_a_rotation_all_processes_write_to_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "handfast.log"
    log = Log.open(path, Level.INFO, process_type="master")
    child = Log(os.dup(log.fileno()), Level.INFO, process_type="worker", worker_id="relay-1")
    child.on_pending = lambda: None
    number = child.fileno()
    child.emit(Draining(1.0))
    log.emit(Stopped())
    path.rename(tmp_path / "handfast.log.1")  # what logrotate does

    new = log.reopen()
    child.emit(Draining(2.0))  # before the message has come
    child.replace(os.dup(new))
    child.emit(Draining(3.0))
    child.flush()
    log.emit(Stopped())

    old, current = (tmp_path / "handfast.log.1").read_text(), path.read_text()
    assert re.findall(r"event=(\w+)", old) == ["stopped", "draining", "draining"]
    assert re.findall(r"event=(\w+)", current) == ["draining", "stopped"]
    assert (child.fileno(), child.dropped) == (number, 0)
    assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0
    assert not os.get_inheritable(number)
    child.close()
    log.close()


def test_rotation_leaves_no_descriptor_behind(tmp_path: Path, log: Log) -> None:
    file = Log.open(tmp_path / "log", Level.INFO, process_type="master")
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, to compare
    for _ in range(3):
        file.reopen()
        log.reopen()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    file.close()


def test_standard_output_as_a_pipe_is_not_made_to_block_nor_changed() -> None:
    reader, writer = os.pipe()
    private = open_private(writer)
    assert os.get_blocking(writer)
    assert not os.get_blocking(private)
    os.write(private, b"one way")
    assert os.read(reader, 99) == b"one way"
    for each in (reader, writer, private):
        os.close(each)


def test_standard_output_as_a_terminal_is_not_made_to_block_nor_changed() -> None:
    leader, terminal = pty.openpty()
    private = open_private(terminal)
    assert os.get_blocking(terminal)
    assert not os.get_blocking(private)
    for each in (leader, terminal, private):
        os.close(each)


def test_standard_output_as_a_file_keeps_the_position_that_others_share(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb", buffering=0) as out:
        out.write(b"first\n")
        private = open_private(out.fileno())
        os.write(private, b"second\n")
        out.write(b"third\n")
        os.close(private)
    assert (tmp_path / "out").read_bytes() == b"first\nsecond\nthird\n"


def test_a_socket_that_blocks_is_written_to_without_blocking() -> None:
    # What systemd gives a service for standard output.
    ours, theirs = socket.socketpair()
    log = Log(open_private(ours.fileno()), Level.INFO, process_type="master")
    while not log.dropped:
        log.emit(LONG)
    assert ours.getblocking()
    assert theirs.recv(1 << 20).endswith(b"\n")
    log.close()
    ours.close()
    theirs.close()


class Late(Log):
    """A log that always finds room, which another process has filled when it comes to write."""

    def _has_room(self, deadline: float) -> bool:
        return True


def test_a_pipe_that_another_process_fills_after_the_look_does_not_block() -> None:
    reader, writer = os.pipe()
    log = Late(open_private(writer), Level.INFO, process_type="worker")
    before = time.monotonic()
    while not log.dropped:
        log.emit(LONG)
    assert time.monotonic() - before < 10
    log.close()
    os.close(reader)
    os.close(writer)


def test_a_fifo_without_a_reader_is_a_configuration_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="No such device"):
        Log.open(tmp_path / "fifo", Level.INFO, process_type="master")


@pytest.mark.parametrize("logfile", [None, "-"])
def test_no_logfile_and_a_hyphen_are_standard_output(logfile: str | None) -> None:
    assert isinstance(sink_for(logfile), sinks.Output)
