"""Start handfast with its interpreters' work counted: `python -m bench.counting FD serve ...`.

handfast has nothing in it for this. Counts go to memory that the descriptor FD names and that all
of its processes share: they have it from before they are confined, and need no file. An acceptor
and a relay count the bytecode instructions that they run, and the functions that they call,
Python's and C's; and at each turn of their loop they note how many blocks of memory they have.

None of that depends on the speed of the machine. Timers would, so the clock stands still in those
processes, and no timer comes to its end.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from itertools import repeat
from types import FrameType
from typing import Any, Final

from handfast.cli import main
from handfast.process import fork
from handfast.transport.loop import Loop

ROLES: Final = ("acceptor", "relay")
KINDS: Final = ("instructions", "calls", "blocks")
INSTRUCTIONS, CALLS, BLOCKS = range(len(KINDS))
CELL: Final = 8
"""Bytes of a count, of which there is one for each kind in each role, in this order."""
SIZE: Final = len(ROLES) * len(KINDS) * CELL


class Counting:
    """The hooks of one process, which count into `cells`."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    def begin(self) -> None:
        """Count from now on."""
        self._stop_time()
        sys.setprofile(self._profile)
        sys.settrace(self._enter)

    def _enter(self, frame: FrameType, _event: str, _argument: object) -> Any:
        if frame.f_globals is globals():
            return None
        self._cells[CALLS] += 1
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._trace

    def _trace(self, _frame: FrameType, event: str, _argument: object) -> Any:
        if event == "opcode":
            self._cells[INSTRUCTIONS] += 1
        return self._trace

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        if event == "c_call" and frame.f_globals is not globals():
            self._cells[CALLS] += 1

    def _stop_time(self) -> None:
        """Have the clock stand still, and the event loop wait for events alone."""
        cells, wait_for_timers = self._cells, Loop._wait

        def wait(self: Loop) -> float:
            cells[BLOCKS] = sys.getallocatedblocks()
            return 0.0 if wait_for_timers(self) == 0.0 else -1.0

        time.monotonic = repeat(time.monotonic()).__next__
        Loop._wait = wait  # type: ignore[method-assign]  # what it waits for is ours to say


def _serve() -> int:
    descriptor = int(sys.argv.pop(1))
    cells = memoryview(mmap.mmap(descriptor, SIZE)).cast("Q")
    os.close(descriptor)
    name_process = vars(fork)["setproctitle"]

    def name_and_count(title: str) -> None:
        name_process(title)
        role = title.split()[1]
        if role in ROLES:
            first = ROLES.index(role) * len(KINDS)
            Counting(cells[first : first + len(KINDS)]).begin()

    vars(fork)["setproctitle"] = name_and_count
    return main()


if __name__ == "__main__":
    sys.exit(_serve())
