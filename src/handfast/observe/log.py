"""The log of one process: whole lines, to a descriptor that may be full, slow or gone.

Logging must never stop the traffic, so nothing here raises, and a reader that does not read costs
a bounded wait once, not once per line: lines that cannot be written are dropped and counted, and a
`log_dropped` event says how many as soon as the log can be written again.

Several processes write to the same descriptor. To a file they append, to a pipe they write at most
`LINE_MAX` bytes at a time, which Linux does whole or not at all (pipe(7), PIPE_BUF), and to a
socket they send one such piece or line at a time, so their lines never mix. How each kind is kept
from blocking is told in `sinks`.

Events are put into words when they are written, many at a time: what that takes of the processor's
caches is then loaded once for all of them, and not between two handshakes.

The descriptor keeps its number for the life of the process. To rotate, the supervisor opens the
sink again (`reopen`) and the others get the new descriptor by message (`replace`); both put it in
the place of the old one by dup3(2), between two lines.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from handfast.errors import ConfigError
from handfast.observe.events import Event, Level, LogDropped, SystemFault
from handfast.observe.logfmt import LINE_MAX, Writer
from handfast.observe.sinks import Daemon, Line, Origin, Output, Sink, sink_for

FILE_WRITE_MAX: Final = 64 * 1024
_FLUSH_AT: Final = 512  # lines, should the event loop be late
_PATIENCE: Final = 0.1  # seconds that a flush waits for a reader that was keeping up so far


def batches(lines: list[bytes], size: int) -> Iterator[tuple[bytes, int]]:
    """Join lines into writes of at most `size` bytes; each comes with its number of lines.

    A line of more than `size` bytes is given alone.
    """
    first = length = 0
    for index, line in enumerate(lines):
        if length and length + len(line) > size:
            yield b"".join(lines[first:index]), index - first
            first, length = index, 0
        length += len(line)
    if length:
        yield b"".join(lines[first:]), len(lines) - first


class Log:
    """Write the events of one process to `fd`, which it owns from now on and `sink` has opened.

    Each process makes its own after the fork (`heir`): the pid is taken once, here. `on_pending`
    is called when the first line is waiting, and has to see to it that `flush` is called soon;
    without it, every event is written at once, as those of level ERROR and FATAL always are.
    """

    def __init__(
        self,
        fd: int,
        level: Level,
        *,
        process_type: str,
        worker_id: str = "",
        sink: Sink | None = None,
        clock: Callable[[], float] = time.time,
        on_pending: Callable[[], None] | None = None,
    ) -> None:
        self.level = level
        self.on_pending = on_pending
        self.on_lost: Callable[[], None] | None = None
        self.dropped = 0  # lines lost so far
        self._fd = fd
        self._sink = sink or Output()
        self._daemon = sink if isinstance(sink, Daemon) else None
        self._clock = clock
        self._origin = Origin(process_type, os.getpid(), worker_id)
        self._writer = Writer(process_type=process_type, pid=self._origin.pid, worker_id=worker_id)
        self._pending: list[tuple[Event, float]] = []
        self._unreported = 0
        self._patience = _PATIENCE
        self._torn = False  # a line was, or may have been, written in part; end it before the next
        self._examine()

    @classmethod
    def open(
        cls,
        logfile: str | Path | None,
        level: Level,
        *,
        process_type: str,
        worker_id: str = "",
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Log to what `logfile` names: a file, syslog, journald, or None for standard output.

        Raises ConfigError if it cannot be opened.
        """
        sink = sink_for(None if logfile is None else str(logfile))
        return cls(
            sink.open(),
            level,
            process_type=process_type,
            worker_id=worker_id,
            sink=sink,
            clock=clock,
        )

    def heir(self, level: Level, *, process_type: str, worker_id: str = "") -> Log:
        """Give the log of a child that has inherited this one's descriptor; call it there."""
        return Log(self._fd, level, process_type=process_type, worker_id=worker_id, sink=self._sink)

    def fileno(self) -> int:
        """Give the descriptor, for a process to inherit; it never changes."""
        return self._fd

    def reopen(self) -> int:
        """Open the sink again, as after a rotation, and give the descriptor to pass on.

        When that fails, it says so in the old log and goes on with that.
        """
        self.flush()
        try:
            self.replace(self._sink.open())
        except ConfigError as error:
            self.emit(SystemFault(error_msg=f"{error}; the log goes on where it was"))
        return self._fd

    def replace(self, descriptor: int) -> None:
        """Write to another descriptor of the same sink from now on. It is moved: closed here."""
        self.flush()
        os.dup2(descriptor, self._fd, inheritable=False)
        os.close(descriptor)
        self._torn = False
        self._patience = _PATIENCE
        self._examine()

    def mend(self) -> bool:
        """Connect to a syslog daemon or journal that was restarted; tell whether one was gone.

        It is for the supervisor, about once a second: all processes share the socket.
        """
        return self._daemon is not None and self._daemon.mend(self._fd)

    def emit(self, event: Event) -> None:
        """Log `event`, unless its level is below that of the log. Never raises an OSError."""
        level = event.level
        if level > self.level:
            return
        pending = self._pending
        pending.append((event, self._clock()))
        if self.on_pending is None or level <= Level.ERROR or len(pending) >= _FLUSH_AT:
            self.flush()
        elif len(pending) == 1:
            self.on_pending()

    def flush(self) -> None:
        """Write what is pending, or drop and count it, and say how many were. Waits 0.1 s at most.

        `on_lost` is called when there are losses to tell of, with a flush some time later.
        """
        pending, self._pending = self._pending, []
        reported = self._unreported if self.level >= LogDropped.LEVEL else 0
        if not pending and not reported:
            return
        if reported:
            pending.insert(0, (LogDropped(reported), self._clock()))
        lines = [self._entry(event, at) for event, at in pending]
        written = self._write(lines)
        lost = len(lines) - written
        if reported and written:
            self._unreported -= reported
        elif reported:
            lost -= 1  # the report itself; it is made anew next time
        self._unreported += lost
        self.dropped += lost
        if self._unreported and self.on_lost is not None and self.level >= LogDropped.LEVEL:
            self.on_lost()

    def close(self) -> None:
        """Write what is pending and close the descriptor."""
        self.flush()
        with suppress(OSError):
            os.close(self._fd)

    def _examine(self) -> None:
        """Learn what kind of thing the descriptor is."""
        mode = os.fstat(self._fd).st_mode
        self._is_file = stat.S_ISREG(mode)
        self._is_socket = stat.S_ISSOCK(mode)
        self._size = FILE_WRITE_MAX if self._is_file else LINE_MAX
        if self._daemon is not None:
            self._size = 0  # each line by itself

    def _entry(self, event: Event, at: float) -> bytes:
        line = self._writer.line(event, at)
        if self._daemon is None:
            return line
        return self._daemon.datagram(Line(line[:-1], event, self._origin, at))

    def _write(self, lines: list[bytes]) -> int:
        """Write lines in order until one cannot be written; give how many were, whole."""
        deadline = time.monotonic() + self._patience
        written = 0
        for batch, count in batches(lines, self._size):
            data = b"\n" + batch if self._torn else batch
            sent = self._send(data, deadline)
            if sent < len(data):
                ended = data[:sent].count(b"\n") - (self._torn and sent > 0)
                if sent:
                    self._torn = data[sent - 1 : sent] != b"\n"
                # A full disk may have cut another process's line: an empty one does no harm.
                self._torn = self._torn or self._is_file
                return written + ended
            self._torn = False
            written += count
        return written

    def _send(self, data: bytes, deadline: float) -> int:
        """Give how many bytes the descriptor took before it failed or the deadline passed."""
        sent = 0
        while sent < len(data) and self._has_room(deadline):
            try:
                sent += self._put(data[sent:])
            except BlockingIOError:  # another process was quicker to fill the room
                if time.monotonic() >= deadline:
                    break
            except OSError:  # no space (ENOSPC), no reader (EPIPE, ECONNREFUSED): they are lost
                break
        return sent

    def _put(self, data: bytes) -> int:
        if not self._is_socket:
            return os.write(self._fd, data)
        # Made anew each time, and given up at once: one that is kept would close the descriptor
        # when it goes, also in a child that has inherited it.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, self._fd)
        try:
            # Whoever has made the socket may want it to block; type and family do not matter here.
            return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        finally:
            sock.detach()

    def _has_room(self, deadline: float) -> bool:
        if self._is_file:
            return True
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        ready = bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
        # A reader that was waited for in vain is not waited for again until it reads.
        self._patience = _PATIENCE if ready else 0.0
        return ready
