"""Pipes, through which the kernel moves bytes from socket to socket without showing them to us.

A pipe is on loan while bytes are in it, which is mostly for the length of one callback: so a
process has a few of them and not two descriptors for each connection.
"""

from __future__ import annotations

import fcntl
import os
import sys
from typing import Final

CAPACITY: Final = 1 << 18
ROOM: Final = 1 << 17
"""Bytes that are moved at a time: as much as one read brings in user space."""

_LEAST: Final = 1 << 16
_SPARE: Final = 16
_SLOT: Final = 4096
# Linux 6.1 drops what is left of a record for which a pipe has no slot (measured; 7.2 does not).
# A record takes five or, from fragmented memory, a few more.
_SLOTS_OF_A_RECORD: Final = 8
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
    """A pipe; `len` is how many bytes are in it, `records` how many records it has room for."""

    __slots__ = ("_input", "_length", "_output", "records")

    def __init__(self) -> None:
        """Make one; raises OSError when descriptors are short, or memory for pipes is."""
        self._length = 0
        self._output, self._input = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.records = self._grow() // _SLOT // _SLOTS_OF_A_RECORD
        except OSError:
            self.close()
            raise

    def _grow(self) -> int:
        try:
            fcntl.fcntl(self._input, fcntl.F_SETPIPE_SZ, CAPACITY)
        except PermissionError:
            pass  # the user's pipes take as much as they may (pipe-user-pages-soft)
        size = fcntl.fcntl(self._input, fcntl.F_GETPIPE_SZ)
        if size < _LEAST:
            raise PermissionError("no room for a pipe")
        return size

    def __len__(self) -> int:
        return self._length

    @property
    def highest(self) -> int:
        """The higher of its two descriptors."""
        return max(self._input, self._output)

    def fill(self, source: int, most: int = ROOM) -> int:
        """Move bytes from a socket into the pipe; 0 at its end. Raises OSError, EAGAIN too."""
        count = os.splice(source, self._input, most, flags=_FLAGS)
        self._length += count
        return count

    def pour(self, sink: int) -> None:
        """Move bytes from the pipe to a socket. Raises OSError, EAGAIN when that takes none."""
        self._length -= os.splice(self._output, sink, self._length, flags=_FLAGS)

    def drain(self) -> bytes:
        """Take all bytes out of the pipe, into memory."""
        data = b""
        while self._length:
            piece = os.read(self._output, self._length)
            self._length -= len(piece)
            data += piece
        return data

    def close(self) -> None:
        """Close it, with what is in it."""
        os.close(self._input)
        os.close(self._output)


class Pipes:
    """The pipes of one process, below `ceiling`: descriptors from there on are for other things."""

    def __init__(self, ceiling: int = sys.maxsize) -> None:
        self._ceiling = ceiling
        self._spare: list[Pipe] = []

    def take(self) -> Pipe | None:
        """Lend an empty pipe; None when there is none to be had, and bytes have to be copied."""
        if self._spare:
            return self._spare.pop()
        try:
            pipe = Pipe()
        except OSError:
            return None
        if pipe.highest >= self._ceiling:
            pipe.close()
            return None
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take one back; with bytes in it, of a connection that has ended, it is closed."""
        if len(pipe) or len(self._spare) >= _SPARE:
            pipe.close()
        else:
            self._spare.append(pipe)

    def close(self) -> None:
        """Close those that are not on loan."""
        while self._spare:
            self._spare.pop().close()
