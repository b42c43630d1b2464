"""How much memory a process uses, as the kernel tells it (proc(5)).

The supervisor asks for its children, which cannot open /proc from inside the sandbox.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from msgspec import Struct

_PAGE: Final = os.sysconf("SC_PAGESIZE")
_PSS: Final = re.compile(rb"^Pss: +([0-9]+) kB$", re.MULTILINE)


class Memory(Struct, frozen=True):
    """Bytes: all that is resident, and with shared pages divided among their users."""

    resident: int
    proportional: int


def memory_of(pid: int) -> Memory:
    """Read the memory of a process; 0 is what cannot be known, as of one that has ended.

    The proportional size of a child that is not dumpable is for root alone to read.
    """
    fields = _read(pid, "statm").split()
    found = _PSS.search(_read(pid, "smaps_rollup"))
    return Memory(
        resident=int(fields[1]) * _PAGE if len(fields) > 1 else 0,
        proportional=int(found[1]) * 1024 if found else 0,
    )


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
