"""Leave the terminal, and let the command wait until it is known whether the start succeeded.

`daemonize` forks twice (daemon(7)): the first child makes a session of its own, the second is not
its leader and so can never get a terminal again. The process that was called stays to hear from
the second over a pipe, prints what that has to say, and ends with its exit code: to whoever calls
it, a start that fails in the background looks like one that fails in the foreground.

The working directory becomes /, so names relative to it have to be made absolute before.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Final

import msgspec

from handfast.errors import ConfigError
from handfast.observe.sinks import Output, sink_for

START_SECONDS: Final = 60.0


class Outcome(msgspec.Struct, frozen=True):
    """How the start ended: the exit code, and what the caller is to print."""

    code: int
    text: str = ""


class Launch:
    """The way back to the command that started this daemon, which hears one outcome.

    No child may keep the pipe: at its end the command knows that the daemon is dead.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def succeeded(self) -> None:
        """Let the command end with 0: everything serves."""
        self._tell(Outcome(0))

    def failed(self, text: str, code: int) -> None:
        """Let the command print `text` to its standard error and end with `code`."""
        self._tell(Outcome(code, text))

    def _tell(self, outcome: Outcome) -> None:
        if self._pipe < 0:
            return
        pipe, self._pipe = self._pipe, -1
        with suppress(OSError):  # the command was interrupted: nobody waits any more
            os.write(pipe, msgspec.json.encode(outcome))
        os.close(pipe)


def require_logfile(logfile: str | None) -> None:
    """Refuse to log to the standard output that a daemon has not; raises ConfigError."""
    if isinstance(sink_for(logfile), Output):
        raise ConfigError(
            "a daemon has no standard output to log to; "
            "set `logfile:` to a file, syslog or journald"
        )


def daemonize(seconds: float = START_SECONDS) -> Launch:
    """Go on as a daemon; the process that called ends here, when that has started or failed.

    A daemon that has not said within `seconds` that it serves is told to end, and has failed.
    It keeps no descriptor of its caller's.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):  # without a reader; None, when it is closed
            stream.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        os.waitpid(child, 0)
        outcome = _hear(reading, time.monotonic() + seconds)
        if outcome.text:
            sys.stderr.write(f"{outcome.text}\n")
        sys.exit(outcome.code)
    os.setsid()
    if os.fork():
        os._exit(0)
    _detach(writing)
    os.write(writing, b"%d\n" % os.getpid())
    return Launch(writing)


def _detach(keep: int) -> None:
    os.chdir("/")
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        if int(name) > 2 and int(name) != keep:
            with suppress(OSError):  # the descriptor of the listing itself
                os.close(int(name))


def _hear(pipe: int, deadline: float) -> Outcome:
    """Wait for the daemon's outcome: its pid in a line, and then JSON up to the end."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    data = b""
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        piece = os.read(pipe, 65536)
        data += piece
        if not piece:
            return _outcome(data)
    pid = data.partition(b"\n")[0].decode()
    if pid:
        with suppress(OSError):  # it has just ended
            os.kill(int(pid), signal.SIGTERM)
    return Outcome(1, "handfast: the daemon did not start in time and was told to end; see its log")


def _outcome(data: bytes) -> Outcome:
    try:
        return msgspec.json.decode(data.partition(b"\n")[2], type=Outcome)
    except msgspec.DecodeError:
        return Outcome(1, "handfast: the daemon ended while it was starting; see its log")
