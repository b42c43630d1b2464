"""Which column of the census is whose; see `transport.census`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from handfast.process.child import Child
from handfast.process.inheritance import Inheritance
from handfast.transport.census import Census, Shared, fits

_GENERATIONS: Final = 3
"""How many there can be at a time: one that ends, the one that serves, and the next."""


def wanted(nworkers: int) -> int:
    """Count the columns of a census: for the relays of two programs, and all their acceptors."""
    return nworkers * (2 + _GENERATIONS + 1)


def shared_by(nworkers: int, left: Inheritance | None) -> Shared | None:
    """Give the table of the program before, if it has the form and the room for ours too."""
    if left is None or left.census is None or not fits(left.census):
        return None
    used = sum(each.column >= 0 for each in left.relatives)
    return left.census if left.census.columns - used >= 2 * nworkers else None


class Columns:
    """Gives columns to processes and takes them back, cleared, when they have died."""

    def __init__(self, census: Census, used: Iterable[int] = ()) -> None:
        """All are free but those that processes of the program before have in use."""
        self._census = census
        self._free = sorted(set(range(census.columns)) - set(used))

    def take(self) -> int:
        """Give a column; -1 when there is none left."""
        return self._free.pop() if self._free else -1

    def give_back(self, child: Child) -> None:
        """Take the column of a process that has died: it holds nothing any more."""
        if child.column >= 0:
            self._census.clear(child.column)
            self._free.append(child.column)
            child.column = -1
