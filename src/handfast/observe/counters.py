"""What a process counts, for `handfast status` and the metrics.

A worker has one `Counters`, which its stages add to as they go: attributes and dictionaries, no
call per byte. It travels as a `Counts`. A worker may be taken over by a peer, so whoever reads a
`Counts` from one relies on the limits of its types: few words, short and printable.
"""

from __future__ import annotations

import operator
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import starmap
from typing import Annotated, Final, TypeAlias, TypeVar

from msgspec import Meta, Struct, field

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histograms' buckets, in seconds; one more bucket has the rest."""

NUMBERS: Final = (
    "accepted",
    "active",
    "bytes_in",
    "bytes_out",
    "connect_failures",
    "handed_over",
    "handshakes_denied",
    "handshakes_failed",
    "handshakes_granted",
    "kernel_refused",
    "log_dropped",
    "moved",
    "relayed",
    "resumed",
)
"""The plain counts by name. All but `active` only go up."""

SESSIONS: Final = "sessions"
"""The gauge of a relay's sessions, labelled by their transport."""

OTHER: Final = "other"
_MOST: Final = 64  # reasons: OpenSSL has hundreds, and which one it is is up to the peer
_BUCKETS: Final = len(BOUNDS) + 1
_LONGEST: Final = 160
_GAUGE_ROOM: Final = 48 * 1024  # bytes: with all the rest, counts fit into one message
_GAUGE_FRAME: Final = 32
# Sums stay within these too, and have so many keys at most, whatever the workers say.
_MAX_COUNT: Final = (1 << 63) - 1
_MAX_SECONDS: Final = 1e15
_MOST_SUMS: Final = 8192
_UNPRINTABLE: Final = re.compile("[^ -~]")

Word = Annotated[str, Meta(max_length=_LONGEST, pattern=r"\A[ -~]*\Z")]
Count = Annotated[int, Meta(ge=0, le=_MAX_COUNT)]
Name = Annotated[str, Meta(max_length=64, pattern=r"\A[a-z][a-z_]*\Z")]
Labels = Annotated[tuple[tuple[Name, Word], ...], Meta(max_length=8)]
Handshake: TypeAlias = tuple[Word, Word, Word]
"""Version, cipher suite and group, as in the log."""
Failure: TypeAlias = tuple[Word, Word]
"""Outcome (denied or failed) and reason, as in the log."""

Key = TypeVar("Key")


class Histogram(Struct):
    """How long something took: how often within each bound, and how many seconds in all."""

    counts: Annotated[list[Count], Meta(min_length=_BUCKETS, max_length=_BUCKETS)] = field(
        default_factory=lambda: [0] * _BUCKETS
    )
    seconds: Annotated[float, Meta(ge=0, le=_MAX_SECONDS)] = 0.0

    def add(self, seconds: float) -> None:
        """Count one; less than nothing, which a clock may give, is nothing."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += max(0.0, seconds)


class Gauge(Struct, frozen=True, array_like=True):
    """A value that goes up and down, with a name and labels as the metrics have them."""

    name: Name
    labels: Labels
    value: Annotated[float, Meta(ge=-1e15, le=1e15)]


class Counts(Struct, frozen=True):
    """The counts of one process, or of several together, at one moment."""

    numbers: Annotated[dict[Word, Count], Meta(max_length=_MOST)] = {}
    granted: Annotated[dict[Handshake, Count], Meta(max_length=1024)] = {}
    failures: Annotated[dict[Failure, Count], Meta(max_length=2 * _MOST)] = {}
    refused: Annotated[dict[Word, Count], Meta(max_length=_MOST + 1)] = {}
    listeners: Annotated[dict[Count, Count], Meta(max_length=4096)] = {}
    handshake_seconds: Histogram = field(default_factory=Histogram)
    connect_seconds: Histogram = field(default_factory=Histogram)
    stall_seconds: Histogram = field(default_factory=Histogram)
    gauges: Annotated[tuple[Gauge, ...], Meta(max_length=_GAUGE_ROOM // _GAUGE_FRAME)] = ()


class Counters:
    """The counts of one process since it started.

    The hot path adds to the attributes directly. `bytes_in` and `bytes_out` are the clients'
    plaintext, from them and to them. `accepted_at` is by listener, `refused` by reason. `refresh`
    is called before the counts are told, to bring up to date what is not counted as it happens:
    bytes of open connections, `gauges`. `longest_stall` is in seconds.
    """

    __slots__ = (
        "accepted",
        "accepted_at",
        "active",
        "bytes_in",
        "bytes_out",
        "connect_failures",
        "connect_seconds",
        "failures",
        "gauges",
        "granted_by",
        "handed_over",
        "handshake_seconds",
        "handshakes_denied",
        "handshakes_failed",
        "handshakes_granted",
        "kernel_refused",
        "log_dropped",
        "longest_stall",
        "moved",
        "refresh",
        "refused",
        "relayed",
        "resumed",
        "stall_seconds",
    )

    def __init__(self) -> None:
        self.accepted = 0
        self.handshakes_granted = 0
        self.handshakes_denied = 0
        self.handshakes_failed = 0
        self.resumed = 0
        self.active = 0
        self.relayed = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.connect_failures = 0
        self.kernel_refused = 0
        self.handed_over = 0
        self.log_dropped = 0
        self.moved = 0
        self.longest_stall = 0.0
        self.accepted_at: dict[int, int] = {}
        self.granted_by: dict[Handshake, int] = {}
        self.failures: dict[Failure, int] = {}
        self.refused: dict[str, int] = {}
        self.handshake_seconds: Final = Histogram()
        self.connect_seconds: Final = Histogram()
        self.stall_seconds: Final = Histogram()
        self.gauges: tuple[Gauge, ...] = ()
        self.refresh: Callable[[], None] | None = None

    def accept(self, listener: int) -> None:
        """Count a connection that came to a listener."""
        self.accepted += 1
        self.accepted_at[listener] = self.accepted_at.get(listener, 0) + 1

    def grant(self, handshake: Handshake, *, resumed: bool, seconds: float) -> None:
        """Count a handshake that gave a session after so many seconds."""
        self.handshakes_granted += 1
        self.resumed += resumed
        self.granted_by[handshake] = self.granted_by.get(handshake, 0) + 1
        self.handshake_seconds.add(seconds)

    def fail(self, outcome: str, reason: str) -> None:
        """Count a handshake that gave none: `denied`, or `failed`."""
        if outcome == "denied":
            self.handshakes_denied += 1
        else:
            self.handshakes_failed += 1
        if len(self.failures) >= _MOST and (outcome, reason) not in self.failures:
            reason = OTHER
        self.failures[outcome, reason] = self.failures.get((outcome, reason), 0) + 1

    def refuse(self, reason: str, count: int = 1) -> None:
        """Count connections that a limit kept out."""
        self.refused[reason] = self.refused.get(reason, 0) + count

    def take(self, stall: float) -> None:
        """Count a connection that came from another relay and stood still for so many seconds."""
        self.moved += 1
        self.stall_seconds.add(stall)
        self.longest_stall = max(self.longest_stall, stall)

    def counts(self) -> Counts:
        """Give all counts of this moment; they share their tables with this."""
        if self.refresh is not None:
            self.refresh()
        return Counts(
            numbers={name: getattr(self, name) for name in NUMBERS},
            granted=self.granted_by,
            failures=self.failures,
            refused=self.refused,
            listeners=self.accepted_at,
            handshake_seconds=self.handshake_seconds,
            connect_seconds=self.connect_seconds,
            stall_seconds=self.stall_seconds,
            gauges=tuple(_fitting(self.gauges)),
        )


def _fitting(gauges: Iterable[Gauge]) -> Iterator[Gauge]:
    """Give gauges as others take them: words in a few printable characters, and not too many.

    Labels come from the configuration, where a path may be of any length and script.
    """
    room = _GAUGE_ROOM
    for each in gauges:
        labels = tuple((name, _UNPRINTABLE.sub("?", text)[:_LONGEST]) for name, text in each.labels)
        room -= _GAUGE_FRAME + len(each.name) + sum(len(name) + len(text) for name, text in labels)
        if room < 0:
            return
        yield Gauge(each.name, labels, float(each.value))


def total(counts: Iterable[Counts]) -> Counts:
    """Add up the counts of several processes; gauges are each process's own, and are left out."""
    every = list(counts)
    return Counts(
        numbers=merge(each.numbers for each in every),
        granted=_sum(each.granted for each in every),
        failures=_sum(each.failures for each in every),
        refused=_sum(each.refused for each in every),
        listeners=_sum(each.listeners for each in every),
        handshake_seconds=_together(each.handshake_seconds for each in every),
        connect_seconds=_together(each.connect_seconds for each in every),
        stall_seconds=_together(each.stall_seconds for each in every),
    )


def merge(numbers: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up the plain counts of several processes.

    A name that this version does not know is added up too: during an upgrade, processes of two
    versions answer.
    """
    return _sum([dict.fromkeys(NUMBERS, 0), *numbers])


def _sum(tables: Iterable[Mapping[Key, int]]) -> dict[Key, int]:
    sums: dict[Key, int] = {}
    for table in tables:
        for key, count in table.items():
            if key in sums or len(sums) < _MOST_SUMS:
                sums[key] = min(_MAX_COUNT, sums.get(key, 0) + count)
    return sums


def _together(histograms: Iterable[Histogram]) -> Histogram:
    sums = Histogram()
    for each in histograms:
        added = starmap(operator.add, zip(sums.counts, each.counts, strict=True))
        sums.counts = [min(_MAX_COUNT, count) for count in added]
        sums.seconds = min(_MAX_SECONDS, sums.seconds + each.seconds)
    return sums
