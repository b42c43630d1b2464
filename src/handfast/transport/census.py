"""How many connections all processes hold together, in shared memory.

A limit holds for handfast as a whole, and every process has to know the sums without asking. The
census is a table in a memfd, which the supervisor maps before it forks: a row for each thing that
is counted, a column for each acceptor and relay. In an upgrade the processes of both programs have
columns in it, so that limits hold meanwhile. A process writes in its own
column only, so that a plain addition needs no lock; a sum over a row is what is held now. It may
be of a moment ago: of n acceptors that admit at the same time, n - 1 may go over a limit. A
connection on its way from an acceptor to a relay is in no column.

A column says what its process holds, not what it has done. Therefore a process that dies takes
nothing with it: the supervisor clears its column, and the sums are right again.

Sources (networks) are too many for a row each. Two tables of BUCKETS rows count them by two
halves of a keyed hash, and the smaller count is taken: it is never too small, and too big only by
others that share both rows. The excess is below the mean of all rows, typically (100,000
connections from as many sources: 6 in a row). The key is random, so that nobody can aim.

The rate is a sliding window over the handshakes of this second and the one before. Each has a row
of its own, by parity, and a cell carries its second in the upper half: what is old counts nothing
and needs no clearing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import socket
from typing import Final

import msgspec

LISTENERS: Final = 1024
"""Rows for listeners. Those whose numbers are this far apart share one."""
BUCKETS: Final = 1 << 14
"""Rows of each table of sources."""

_CONNECTIONS: Final = 0
_HANDSHAKES: Final = 1
_LISTENERS: Final = 2
_SOURCES: Final = _LISTENERS + LISTENERS
_STARTS: Final = _SOURCES + 2 * BUCKETS
_ROWS: Final = _STARTS + 4 * BUCKETS

# A place is one number, since every connection keeps one: 10 bits of listener, twice 14 of bucket.
_FIRST: Final = 10
_SECOND: Final = 24
_NO_SOURCE: Final = 1 << 38
_MASK: Final = BUCKETS - 1
_MAPPED: Final = bytes(10) + b"\xff\xff"
_HALF: Final = 0xFFFF
_CELL: Final = 0xFFFF_FFFF


class Shared(msgspec.Struct, frozen=True):
    """What another program needs to go on with a table: the memory's descriptor, and its form.

    `key` is that of the hash by which sources find their rows.
    """

    descriptor: int
    columns: int
    rows: int
    key: bytes


def share(columns: int) -> Shared:
    """Make the memory of a table that another program can go on with; close its descriptor."""
    descriptor = os.memfd_create("census")
    os.ftruncate(descriptor, _size(columns))
    return Shared(descriptor, columns, _ROWS, secrets.token_bytes(16))


def _size(columns: int) -> int:
    return 4 * (_ROWS * columns + 2)


class Census:
    """The table. Reading is for every process, the rest for the supervisor.

    It has so many columns of its own, or those of what is `shared`.
    """

    def __init__(self, columns: int = 0, shared: Shared | None = None) -> None:
        self.shared: Final = shared
        self.columns: Final = shared.columns if shared else columns
        key = shared.key if shared else secrets.token_bytes(16)
        self._hash: Final = hashlib.blake2b(digest_size=8, key=key)
        memory = mmap.mmap(shared.descriptor if shared else -1, _size(self.columns))
        cells = memoryview(memory).cast("I")
        # One column behind the other: those that are not in use take no memory.
        self._cells: Final = cells[:-2]
        self._prefixes: Final = cells[-2:]
        if not self._prefixes[0]:
            self.set_prefixes(32, 64)

    def set_prefixes(self, v4_bits: int, v6_bits: int) -> None:
        """Say how many bits of an address make its source, from now on and in every process."""
        self._prefixes[0], self._prefixes[1] = v4_bits, v6_bits

    def column(self, number: int) -> memoryview:
        """Give the cells of one column, by row."""
        return self._cells[number * _ROWS : (number + 1) * _ROWS]

    def clear(self, number: int) -> None:
        """Forget what a process held, which is dead."""
        self.column(number)[:] = memoryview(bytes(4 * _ROWS)).cast("I")

    def place(self, listener: int, address: str) -> int:
        """Find where the connections of a listener and a client's address are counted.

        Without an address, as Unix sockets have none, they are of no source. What has entered has
        to leave by the same place, for the prefixes may change in between.
        """
        place = listener % LISTENERS
        if not address:
            return place | _NO_SOURCE
        keyed = self._hash.copy()
        keyed.update(_network(address, *self._prefixes))
        both = int.from_bytes(keyed.digest(), "big") % (BUCKETS * BUCKETS)
        return place | both << _FIRST

    def connections(self) -> int:
        """Count the connections that are held by all processes."""
        return self._sum(_CONNECTIONS)

    def handshakes(self) -> int:
        """Count the handshakes in progress."""
        return self._sum(_HANDSHAKES)

    def of_listener(self, place: int) -> int:
        """Count the connections of the place's listener."""
        return self._sum(_LISTENERS + place % (1 << _FIRST))

    def of_source(self, place: int) -> int:
        """Estimate the connections of the place's source; 0 when it has none."""
        if place & _NO_SOURCE:
            return 0
        first, second = _rows(place)
        return min(self._sum(_SOURCES + first), self._sum(_SOURCES + second))

    def rate(self, place: int, now: float) -> float:
        """Estimate the handshakes of the place's source in the last second; 0 without a source.

        Those of the second before count as far as the window of one second reaches into it.
        """
        if place & _NO_SOURCE:
            return 0
        first, second = _rows(place)
        return min(self._rate(first, now), self._rate(second, now))

    def _sum(self, row: int) -> int:
        return sum(self._cells[row::_ROWS])

    def _rate(self, row: int, now: float) -> float:
        second = int(now)
        before = self._starts(row, second - 1) * (1 - (now - second))
        return self._starts(row, second) + before

    def _starts(self, row: int, second: int) -> int:
        stamp = second & _HALF
        cells = self._cells[_STARTS + 2 * row + (second & 1) :: _ROWS]
        return sum([cell & _HALF for cell in cells if cell >> 16 == stamp])


def fits(shared: Shared) -> bool:
    """Tell whether a table of another program is of the form that this one knows."""
    return (shared.rows, len(shared.key)) == (_ROWS, 16) and shared.columns > 0


class Column:
    """One process's part of the census; that process alone may use it."""

    def __init__(self, census: Census, number: int) -> None:
        self.census: Final = census
        self._cells: Final = census.column(number)

    def enter(self, listener: int, address: str) -> int:
        """Count a connection that this process holds from now on; give its place, for `leave`."""
        place = self.census.place(listener, address)
        self.hold(place)
        return place

    def hold(self, place: int) -> None:
        """Count a connection of which the place is known."""
        self._add(place, 1)

    def leave(self, place: int) -> None:
        """Count one less: it has ended, or is another process's."""
        self._add(place, -1)

    def begin_handshake(self) -> None:
        """Count a handshake that is in progress from now on."""
        self._cells[_HANDSHAKES] = self._cells[_HANDSHAKES] + 1 & _CELL

    def end_handshake(self) -> None:
        """Count one less: it has ended, one way or the other."""
        self._cells[_HANDSHAKES] = self._cells[_HANDSHAKES] - 1 & _CELL

    def started(self, place: int, now: float) -> None:
        """Count a handshake in the rate of the place's source. `now` is of CLOCK_MONOTONIC."""
        if place & _NO_SOURCE:
            return
        second = int(now)
        stamp = (second & _HALF) << 16
        for row in _rows(place):
            cell = _STARTS + 2 * row + (second & 1)
            count = self._cells[cell]
            if count & ~_HALF != stamp:
                self._cells[cell] = stamp | 1
            elif count & _HALF != _HALF:
                self._cells[cell] = count + 1

    def _add(self, place: int, change: int) -> None:
        # All processes can write here. One that was taken over may spoil the counts, but not make
        # another fail: hence the masks, here and in `_network`.
        cells = self._cells
        cells[_CONNECTIONS] = cells[_CONNECTIONS] + change & _CELL
        listener = _LISTENERS + place % (1 << _FIRST)
        cells[listener] = cells[listener] + change & _CELL
        if not place & _NO_SOURCE:
            first, second = _rows(place)
            first += _SOURCES
            second += _SOURCES
            cells[first] = cells[first] + change & _CELL
            cells[second] = cells[second] + change & _CELL


def _rows(place: int) -> tuple[int, int]:
    """Give the row in each of the two tables, counted from the start of the first."""
    return place >> _FIRST & _MASK, BUCKETS + (place >> _SECOND & _MASK)


def _network(address: str, v4_bits: int, v6_bits: int) -> bytes:
    """Give what all addresses of a source have in common, the same for no other source.

    An IPv4 address in IPv6 form (RFC 4291, section 2.5.5.2) is an IPv4 address, and the zone of a
    link-local one does not matter.
    """
    if ":" not in address:
        packed = socket.inet_pton(socket.AF_INET, address)
    else:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
        if packed.startswith(_MAPPED):
            packed = packed[12:]
    spare = 32 - v4_bits if len(packed) == 4 else 128 - v6_bits
    if spare <= 0:
        return packed
    return (int.from_bytes(packed, "big") >> spare).to_bytes(len(packed), "big")
