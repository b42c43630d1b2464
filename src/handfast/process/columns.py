"""Which column of the census is whose; see `transport.census`."""

from __future__ import annotations

from collections.abc import Iterable

from handfast.process.child import Child
from handfast.transport.census import Census


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
