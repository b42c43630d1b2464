from __future__ import annotations

import os
import resource
from pathlib import Path

from handfast.transport.buffers import untouched

SIZE = 64 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_buffer_takes_memory_where_it_was_used_only() -> None:
    before = resident()

    buffer = untouched(SIZE)
    buffer[SIZE // 2] = 1

    assert resident() - before < SIZE // 4
    assert bytes(buffer[SIZE // 2 - 1 : SIZE // 2 + 2]) == b"\0\1\0"


def test_a_child_writes_to_a_copy() -> None:
    buffer = untouched(10)

    if not (pid := os.fork()):
        buffer[0] = 1
        os._exit(0)
    os.waitpid(pid, 0)

    assert buffer[0] == 0
