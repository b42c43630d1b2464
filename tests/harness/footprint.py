"""What a running handfast occupies, by /proc: its processes, their descriptors and memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from harness.instance import wait_for
from harness.processes import descriptors, title

_ANONYMOUS: Final = re.compile(r"^RssAnon:\s+(\d+) kB$", re.MULTILINE)
_LOOKS: Final = 30
ROOM: Final = 6 << 20
"""Bytes that a process may have grown by: what CPython's arenas keep for the next time."""


@dataclass(frozen=True)
class Occupied:
    """One process: its descriptors, and the bytes of memory that no file backs."""

    pid: int
    descriptors: int
    memory: int


@dataclass(frozen=True)
class Footprint:
    """All processes of one handfast by title; two of one title are told apart by a mark."""

    processes: dict[str, Occupied]

    @classmethod
    def of(cls, supervisor: int) -> Self:
        """Look at the supervisor and everything below it."""
        found: dict[str, Occupied] = {}
        for pid in family(supervisor):
            try:
                name, occupied = title(pid), _occupied(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
            while name in found:
                name += "'"
            found[name] = occupied
        return cls(found)

    @property
    def descriptors(self) -> dict[str, int]:
        """Descriptors by process."""
        return {name: each.descriptors for name, each in sorted(self.processes.items())}

    @property
    def memory(self) -> dict[str, int]:
        """Bytes by process."""
        return {name: each.memory for name, each in sorted(self.processes.items())}

    def pid(self, name: str) -> int:
        """Give the process with this title, without `handfast: `."""
        return self.processes[f"handfast: {name}"].pid


def family(pid: int) -> Iterator[int]:
    """Give a process and all that descend from it."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in children.split():
        yield from family(int(child))


def _occupied(pid: int) -> Occupied:
    found = _ANONYMOUS.search(Path(f"/proc/{pid}/status").read_text())
    return Occupied(pid, descriptors(pid), int(found[1]) * 1024 if found else 0)


def settled(supervisor: int) -> Footprint:
    """Give the footprint of a handfast at rest: one generation, and the same at every look."""
    looks = [Footprint.of(supervisor)]

    def at_rest() -> bool:
        looks.append(Footprint.of(supervisor))
        same = all(each.descriptors == looks[-1].descriptors for each in looks[-_LOOKS:])
        alone = not any(name.endswith("'") for name in looks[-1].processes)
        return same and alone and len(looks) > _LOOKS

    wait_for(at_rest, "handfast is at rest")
    return looks[-1]


def back_at(baseline: Footprint, supervisor: int, room: int = ROOM) -> Footprint:
    """Wait until processes and descriptors are those of the baseline, and check the memory."""
    seen = [baseline]

    def same() -> bool:
        seen.append(Footprint.of(supervisor))
        return seen[-1].descriptors == baseline.descriptors

    try:
        wait_for(same, "back at the baseline")
    except AssertionError as error:
        raise AssertionError(f"{baseline.descriptors}\nbecame\n{seen[-1].descriptors}") from error
    now = seen[-1]
    grown = {name: size - baseline.memory[name] for name, size in now.memory.items()}
    assert max(grown.values()) < room, f"memory grew by {grown}"
    return now
