"""The two ways of counting: system calls as strace(1) sees them, the interpreter's work by hooks.

Left out are the system calls that time causes (waiting that ends with nothing, writing the log,
reading the clock on a kernel without vDSO), and those of allocators and libraries that depend on
what came before (memory, getpid).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench import counting
from bench.installation import HANDFAST, LOG, Installation, installation

Counts = dict[str, int]
Read = Callable[[], Counts]
"""Gives how often each thing has happened so far."""
_CLOCKS: Final = {"clock_gettime", "gettimeofday", "time"}
_MEMORY: Final = {"brk", "mmap", "munmap", "mremap", "madvise"}
_NOT_COUNTED: Final = {*_CLOCKS, *_MEMORY, "getpid"}
_CALL: Final = re.compile(r"(\w+)\(")
_TIMEOUT: Final = re.compile(r"epoll_p?wait\(.*, \[\], .*, [1-9]\d*\) += 0")


class CountersError(Exception):
    """Nothing can be counted."""


class SystemCalls:
    """The system calls of some processes, read from what strace writes of them."""

    def __init__(self, stem: Path, roles: dict[str, int]) -> None:
        self._files = {role: Path(f"{stem}.{pid}") for role, pid in roles.items()}

    def read(self) -> Counts:
        """Count."""
        return {
            f"{role}: system calls": sum(map(_is_counted, file.read_text().splitlines(True)))
            for role, file in self._files.items()
        }


def _is_counted(line: str) -> bool:
    call = _CALL.match(line)
    return (
        call is not None
        and call[1] not in _NOT_COUNTED
        and line.endswith("\n")  # else it has not returned
        and f"{LOG}>" not in line
        and not _TIMEOUT.match(line)
    )


@contextmanager
def traced(
    directory: Path, home: str, program: tuple[str, ...] = HANDFAST
) -> Iterator[tuple[Installation, Read]]:
    """Run handfast with its system calls counted; raises CountersError if it may not be."""
    with installation(directory, home, program) as running:
        stem = directory / "strace"
        processes = [part for pid in running.roles.values() for part in ("-p", str(pid))]
        command = ["strace", "-y", "-s", "0", "-ff", "-o", str(stem), *processes]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
            try:
                _wait_until_attached(strace, len(running.roles))
                yield running, SystemCalls(stem, running.roles).read
            finally:
                strace.send_signal(signal.SIGINT)


def _wait_until_attached(strace: subprocess.Popen[bytes], processes: int) -> None:
    assert strace.stderr is not None
    for _ in range(processes):
        said = strace.stderr.readline()
        if b"attached" not in said:
            raise CountersError(f"strace: {said.decode().strip()}")


@contextmanager
def interpreted(directory: Path, home: str) -> Iterator[tuple[Installation, Read]]:
    """Run handfast with the work of its interpreters counted."""
    memory = os.memfd_create("counts")
    try:
        os.ftruncate(memory, counting.SIZE)
        program = ("-m", "bench.counting", str(memory))

        def read() -> Counts:
            cells = memoryview(os.pread(memory, counting.SIZE, 0)).cast("Q")
            names = [f"{role}: {kind}" for role in counting.ROLES for kind in counting.KINDS]
            return dict(zip(names, cells, strict=True))

        with installation(directory, home, program, memory) as running:
            yield running, read
    finally:
        os.close(memory)
