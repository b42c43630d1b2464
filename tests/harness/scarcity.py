"""Take something from a running process that it cannot do without, and give it back."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from harness.forked import in_child


@contextmanager
def few_descriptors(pid: int, room: int) -> Iterator[None]:
    """Leave a process so many descriptors above the highest that it has open."""
    before = limits(pid)
    highest = max(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())
    in_child(partial(_limit, pid, (highest + 1 + room, before[1])))
    try:
        yield
    finally:
        in_child(partial(_limit, pid, before))


def limits(pid: int) -> tuple[int, int]:
    """Give the soft and the hard limit of descriptors of a process."""
    text = Path(f"/proc/{pid}/limits").read_text()
    found = re.search(r"^Max open files +(\d+) +(\d+)", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1]), int(found[2])


def _limit(pid: int, limit: tuple[int, int]) -> None:
    """Set the limits, as the user that the process runs as: root may lack CAP_SYS_RESOURCE.

    A process that has ended meanwhile needs none.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return
    user, group = (int(status.split(f"{name}:")[1].split()[0]) for name in ("Uid", "Gid"))
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
