"""What a tree of processes costs: CPU time and user memory, as the kernel accounts for them.

CPU time is user plus system time of every process of the tree, of threads that ended and of
children that ended and were waited for: proc(5), /proc/PID/stat, utime, stime, cutime and
cstime. It counts in clock ticks, so a measurement should last a hundred of them. Work that the
kernel does outside these processes is not in it, for any system.

Memory is what /proc/PID/smaps_rollup adds up: pages in user space. What the kernel keeps for
sockets, stacks and page tables is another figure, which it tells for the whole machine only.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
QUIET: Final = 0.15
"""Seconds without a clock tick of CPU time after which a tree has finished its work."""


class MeasureError(Exception):
    """A measurement could not be taken, or would not mean anything."""


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/PID/stat. `cpu` is in seconds and includes children waited for."""

    pid: int
    state: str
    parent: int
    session: int
    cpu: float


def _read(pid: int) -> Process | None:
    """Read the state of `pid`, None when it has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may hold blanks and brackets, so count from the last bracket.
    fields = text.rpartition(")")[2].split()
    ticks = sum(int(field) for field in fields[11:15])
    return Process(pid, fields[0], int(fields[1]), int(fields[3]), ticks * TICK)


def tree(root: int) -> list[Process]:
    """Give every process of the session that `root` leads, and all their descendants.

    The session matters: a process whose parent has ended belongs to init, and is still ours.
    """
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    everyone = [process for pid in pids if (process := _read(pid))]
    found = {p.pid for p in everyone if root in (p.session, p.pid)}
    size = 0
    while size != len(found):
        size = len(found)
        found |= {p.pid for p in everyone if p.parent in found}
    return [p for p in everyone if p.pid in found]


def cpu_seconds(root: int) -> float:
    """Give the CPU time of the tree of `root` so far, in seconds."""
    return sum(process.cpu for process in tree(root))


def quiet_cpu_seconds(root: int, *, patience: float = 20) -> float:
    """Wait until the tree of `root` has finished its work, then give its CPU time in seconds.

    Raises MeasureError when it still works after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    last = cpu_seconds(root)
    while time.monotonic() < deadline:
        time.sleep(QUIET)
        now = cpu_seconds(root)
        if now == last:
            return now
        last = now
    raise MeasureError(f"process {root} still uses CPU time {patience} s after the load ended")


def memory(root: int) -> int:
    """Give the user memory of the tree of `root`, in bytes: shared pages by their share (PSS)."""
    total = 0
    for process in tree(root):
        if process.state == "Z":
            continue
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Pss":
                total += int(value.split()[0]) * 1024
    return total


def kernel_memory() -> int:
    """Give the bytes that the kernel keeps for everybody: slabs, stacks, page tables, TCP's pages.

    proc(5), /proc/meminfo and /proc/net/sockstat.
    """
    kept = {"Slab", "KernelStack", "PageTables"}
    lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    total = sum(int(line[1]) * 1024 for line in lines if line[0].rstrip(":") in kept)
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        words = line.split()
        if words[0] == "TCP:":
            total += int(words[words.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE")
    return total
