r"""Where a log goes: standard output, a file, a syslog daemon, or systemd's journal.

A sink opens one descriptor, which all processes inherit, and says how a line is written to it.
Nothing may ever wait for a reader, and the flags of a descriptor that other programs share are not
ours to change; so each kind has its way not to block:

- a pipe or terminal is opened a second time, which gives a description of its own that is made
  not to block (`open_private`);
- a socket, standard output or our own, is written to by send(2) with MSG_DONTWAIT;
- a file needs nothing: writing to it never waits for another process.

syslog and the journal take datagrams, one for a line, each of which is taken whole or not at all.
Their daemons are restarted now and then; a socket whose peer has gone is disconnected by the next
send. All processes share one socket, so it is enough when the supervisor connects it again
(`mend`): the others, who may not open anything, go on with the descriptor they have.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final, Protocol

import msgspec

from handfast.errors import ConfigError
from handfast.observe.events import Event, Level
from handfast.observe.logfmt import VALUE_MAX

SYSLOG_PATH: Final = "/dev/log"
JOURNAL_PATH: Final = "/run/systemd/journal/socket"
IDENTIFIER: Final = "handfast"

_LOG_DAEMON: Final = 3 << 3
# Severities of RFC 5424, section 6.2.1: what ends handfast is critical, not an emergency.
_SEVERITY: Final = {
    Level.FATAL: 2,
    Level.ERROR: 3,
    Level.WARN: 4,
    Level.INFO: 6,
    Level.DEBUG: 7,
}


class Origin(msgspec.Struct, frozen=True):
    """The process that lines come from."""

    process_type: str
    pid: int
    worker_id: str = ""


class Line(msgspec.Struct, frozen=True):
    """A line for a daemon: its text without the newline, and what it was made of.

    `time` is in seconds since the epoch.
    """

    text: bytes
    event: Event
    origin: Origin
    time: float


class Sink(Protocol):
    """One place for log lines."""

    def open(self) -> int:
        """Open it and give the descriptor; raises ConfigError with the remedy."""


class Output:
    """Standard output, whatever it is."""

    def open(self) -> int:
        """Give a descriptor that does not block, if there can be one."""
        return open_private(1)


class File:
    """The end of a file, which is made with mode 0640."""

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self) -> int:
        """Open the file; a FIFO or a terminal does as well."""
        # Without O_NONBLOCK a FIFO would wait for its reader here, and keep it waiting later.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        try:
            return os.open(self.path, flags, 0o640)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot open the log file ({error.strerror}); "
                "name a file in a directory that the starting user may write to"
            ) from error


class Daemon(ABC):
    """A daemon that takes datagrams at a socket in the file system, one for a line."""

    NAME: ClassVar[str]

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self) -> int:
        """Connect a socket; raises ConfigError if nobody listens."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.connect(self.path)
            except OSError as error:
                raise ConfigError(
                    f"{self.path}: cannot log to {self.NAME} ({error.strerror}); "
                    "start it, or set `logfile:` to a file or to - for standard output"
                ) from error
            return sock.detach()

    @abstractmethod
    def datagram(self, line: Line) -> bytes:
        """Give what is sent for a line."""

    def mend(self, descriptor: int) -> bool:
        """Connect a socket again that its daemon has left; tell whether that was needed."""
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            try:
                sock.getpeername()
            except OSError:  # ENOTCONN, since a send has found nobody
                with suppress(OSError):  # not there yet
                    sock.connect(self.path)
                return True
        return False


class Syslog(Daemon):
    """The syslog daemon: datagrams as glibc's syslog(3) sends them (RFC 3164 without the host)."""

    NAME = "the syslog daemon"

    def datagram(self, line: Line) -> bytes:
        """Give `<priority>Mmm dd hh:mm:ss handfast[pid]: line`."""
        # Python leaves LC_TIME alone, so the month is in English, as RFC 3164 has it.
        clock = time.strftime("%b %e %H:%M:%S", time.localtime(line.time))
        priority = _LOG_DAEMON | _SEVERITY[line.event.level]
        return f"<{priority}>{clock} {IDENTIFIER}[{line.origin.pid}]: ".encode() + line.text


class Journal(Daemon):
    """journald's native protocol: a line as MESSAGE, and each field as HANDFAST_NAME.

    The journal adds the pid and the time of arrival. Fields hold what the event holds, unquoted;
    bytes of a peer are themselves again. They are cut like those of the line, at `VALUE_MAX`
    characters, so a datagram stays far below what a socket takes and needs no memfd.
    https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
    """

    NAME = "journald"

    def datagram(self, line: Line) -> bytes:
        """Give one journal entry."""
        event, origin = line.event, line.origin
        named = {
            "EVENT": event.NAME,
            "PROCESS_TYPE": origin.process_type,
            "WORKER_ID": origin.worker_id,
        }
        given: dict[str, str | float | None] = msgspec.to_builtins(event)  # without defaults
        fields = [
            _field("MESSAGE", line.text.decode("ascii")),
            _field("PRIORITY", str(_SEVERITY[event.level])),
            _field("SYSLOG_IDENTIFIER", IDENTIFIER),
            *(
                _field(f"HANDFAST_{name.upper()}", _cut(value))
                for name, value in (named | given).items()
                if value is not None and value != ""
            ),
        ]
        return b"".join(fields)


def _field(name: str, value: str) -> bytes:
    """Write one field; a value with a newline has its length before it."""
    data = value.encode("utf-8", "surrogateescape")
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def _cut(value: str | float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if len(text) <= VALUE_MAX else f"{text[:VALUE_MAX]}…+{len(text) - VALUE_MAX}"


def sink_for(logfile: str | None) -> Sink:
    """Give the sink that `logfile` of the configuration names."""
    match logfile:
        case None | "-":
            return Output()
        case "syslog":
            return Syslog(SYSLOG_PATH)
        case "journald":
            return Journal(JOURNAL_PATH)
    return File(logfile)


def open_private(descriptor: int) -> int:
    """Open what a descriptor leads to once more, not to block; or duplicate it.

    It is duplicated where that would not help or cannot be done: a regular file (whose position
    the programs that have it share), a socket, a terminal or pipe of another user's, and a pipe
    without a reader.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with suppress(OSError):
            return os.open(Path(f"/proc/self/fd/{descriptor}"), flags)
    return os.dup(descriptor)
