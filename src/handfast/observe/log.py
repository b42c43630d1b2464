"""The log of one process: whole lines, to a descriptor that may be full, slow or gone.

Logging must never stop the traffic, so nothing here raises, and a reader that does not read costs
a bounded wait once, not once per line: lines that cannot be written are dropped and counted, and a
`log_dropped` event says how many as soon as the log can be written again.

Several processes write to the same descriptor. To a file they append, and to a pipe they write at
most `LINE_MAX` bytes at a time, which Linux does whole or not at all (pipe(7), PIPE_BUF), so their
lines never mix. The descriptor may block (standard output is shared with other programs, so its
flags are not ours to change): before each write to anything but a file, poll(2) says if there is
room.
"""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from handfast.errors import ConfigError
from handfast.observe.events import Event, Level, LogDropped
from handfast.observe.logfmt import LINE_MAX, Writer

FILE_WRITE_MAX: Final = 64 * 1024
_FLUSH_AT: Final = 512  # lines, some 200 KB, should the event loop be late
_PATIENCE: Final = 0.1  # seconds that a flush waits for a reader that was keeping up so far


def batches(lines: list[bytes], size: int) -> Iterator[tuple[bytes, int]]:
    """Join lines into writes of at most `size` bytes; each comes with its number of lines.

    A line of more than `size` bytes would be given alone.
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
    """Write the events of one process to `fd`, which it owns from now on.

    Each process makes its own after the fork: the pid is taken once, here. `on_pending` is called
    when the first line is waiting, and has to see to it that `flush` is called soon; without it,
    every event is written at once, as those of level ERROR and FATAL always are.
    """

    def __init__(
        self,
        fd: int,
        level: Level,
        *,
        process_type: str,
        worker_id: str = "",
        clock: Callable[[], float] = time.time,
        on_pending: Callable[[], None] | None = None,
    ) -> None:
        self.level = level
        self.on_pending = on_pending
        self.dropped = 0  # lines lost so far
        self._fd = fd
        self._clock = clock
        self._writer = Writer(process_type=process_type, pid=os.getpid(), worker_id=worker_id)
        self._lines: list[bytes] = []
        self._unreported = 0
        self._patience = _PATIENCE
        self._torn = False  # a line was written in part; end it before the next
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._size = FILE_WRITE_MAX if self._is_file else LINE_MAX

    @classmethod
    def open(
        cls,
        path: Path | None,
        level: Level,
        *,
        process_type: str,
        worker_id: str = "",
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Log to the end of a file (made with mode 0640), or to standard output without a path.

        Raises ConfigError if the file cannot be opened.
        """
        fd = os.dup(1) if path is None else _append_to(path)
        return cls(fd, level, process_type=process_type, worker_id=worker_id, clock=clock)

    def fileno(self) -> int:
        """Give the descriptor, for a process to inherit."""
        return self._fd

    def emit(self, event: Event) -> None:
        """Log `event`, unless its level is below that of the log. Never raises an OSError."""
        level = event.level
        if level > self.level:
            return
        lines = self._lines
        lines.append(self._writer.line(event, self._clock()))
        if self.on_pending is None or level <= Level.ERROR or len(lines) >= _FLUSH_AT:
            self.flush()
        elif len(lines) == 1:
            self.on_pending()

    def flush(self) -> None:
        """Write what is pending, or drop and count it. Waits 0.1 s at most."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        reported = self._unreported
        if reported and self.level >= LogDropped.LEVEL:
            lines.insert(0, self._writer.line(LogDropped(reported), self._clock()))
        else:
            reported = 0
        written = self._write(lines)
        lost = len(lines) - written
        if reported and written:
            self._unreported -= reported
        elif reported:
            lost -= 1  # the report itself; it is made anew next time
        self._unreported += lost
        self.dropped += lost

    def close(self) -> None:
        """Write what is pending and close the descriptor."""
        self.flush()
        with suppress(OSError):
            os.close(self._fd)

    def _write(self, lines: list[bytes]) -> int:
        """Write lines in order until one cannot be written; give how many were, whole."""
        deadline = time.monotonic() + self._patience
        written = 0
        for batch, count in batches(lines, self._size):
            data = b"\n" + batch if self._torn else batch
            sent = self._send(data, deadline)
            if sent < len(data):
                ended = data[:sent].count(b"\n") - (self._torn and sent > 0)
                self._torn = self._torn if sent == 0 else data[sent - 1 : sent] != b"\n"
                return written + ended
            self._torn = False
            written += count
        return written

    def _send(self, data: bytes, deadline: float) -> int:
        """Give how many bytes the descriptor took before it failed or the deadline passed."""
        sent = 0
        while sent < len(data) and self._has_room(deadline):
            try:
                sent += os.write(self._fd, data[sent:])
            except BlockingIOError:  # another process was quicker to fill the room
                if time.monotonic() >= deadline:
                    break
            except OSError:  # no space (ENOSPC), no reader (EPIPE): the lines are lost
                break
        return sent

    def _has_room(self, deadline: float) -> bool:
        if self._is_file:
            return True
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        ready = bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
        # A reader that was waited for in vain is not waited for again until it reads.
        self._patience = _PATIENCE if ready else 0.0
        return ready


def _append_to(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot open the log file ({error.strerror}); "
            "name a file in a directory that the starting user may write to"
        ) from error
