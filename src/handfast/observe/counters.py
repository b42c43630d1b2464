"""What a process counts, for `handfast status`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Counters:
    """The counts of one process since it started; `active` alone goes down again.

    The hot path adds to the attributes directly. `bytes_in` and `bytes_out` are the clients'
    plaintext, from them and to them.
    """

    __slots__ = (
        "accepted",
        "active",
        "bytes_in",
        "bytes_out",
        "connect_failures",
        "handshakes_denied",
        "handshakes_failed",
        "handshakes_granted",
        "log_dropped",
        "relayed",
        "resumed",
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
        self.log_dropped = 0

    def as_dict(self) -> dict[str, int]:
        """Give all counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}


def merge(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up the counts of several processes.

    A name that this version does not know is added up too: during an upgrade, processes of two
    versions answer.
    """
    total = Counters().as_dict()
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total
