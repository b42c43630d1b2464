"""A child of the supervisor's, alive or waiting to be forked again."""

from __future__ import annotations

import socket
from enum import Enum
from typing import Final

_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 10.0
_STABLE_SECONDS: Final = 10.0


class Kind(Enum):
    """What a child does."""

    RELAY = "relay"
    TEMPLATE = "template"
    ACCEPTOR = "acceptor"
    RESOLVER = "resolver"
    MONITOR = "monitor"
    DEMO = "demo"
    PROOF = "proof"


class Child:
    """One place in the set of processes. `pid` is 0 while nobody fills it.

    `column` is its own in the census, -1 for those that have none. `parent` is the template's PID,
    for an acceptor.
    """

    __slots__ = (
        "column",
        "control",
        "failures",
        "kind",
        "number",
        "parent",
        "pid",
        "pidfd",
        "ready",
        "restarts",
        "started",
    )

    def __init__(self, kind: Kind, number: int) -> None:
        self.kind = kind
        self.number = number
        self.pid = 0
        self.parent = 0
        self.pidfd = -1
        self.control: socket.socket | None = None
        self.column = -1
        self.ready = False
        self.restarts = 0
        self.failures = 0
        self.started = 0.0

    @property
    def name(self) -> str:
        """The name in the log and in `ps`."""
        if self.kind in (Kind.RELAY, Kind.ACCEPTOR):
            return f"{self.kind.value} {self.number}"
        return str(self.kind.value)

    @property
    def worker_id(self) -> str:
        """The name as one word."""
        return self.name.replace(" ", "-")

    def delay(self, now: float) -> float:
        """Give the seconds to wait before it is forked again: longer each time it dies young."""
        if now - self.started >= _STABLE_SECONDS:
            self.failures = 0
        self.failures += 1
        if self.failures == 1:
            return 0.0
        return float(min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (self.failures - 2)))
