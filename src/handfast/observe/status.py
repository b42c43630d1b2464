"""The state of a running handfast as one value: what `handfast status` and the metrics show.

Times called `last` or `not_after` are seconds since 1970; durations are seconds, memory is bytes.
Everything has a default but what every version of handfast has always told.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct, field

from handfast.observe.counters import SESSIONS, Histogram

State: TypeAlias = Literal["starting", "serving", "draining"]


class ListenerStatus(Struct, frozen=True):
    """A listener: `accepted` since the start, `active` now, handshakes in progress included.

    `number` is the listener's own for ever; by it, workers say which one they mean.
    """

    listen: str
    target: str
    name: str = ""
    number: int = 0
    accepted: int = 0
    active: int = 0


class ProcessStatus(Struct, frozen=True):
    """One process; `pid` is 0 while there is none in this place.

    `counters` is empty for one that counts nothing or has not answered yet. `resident` is the
    memory that it uses (RSS), `proportional` has shared pages divided among those who share them
    (PSS): add those up. It is 0 where the kernel does not tell it to who runs handfast. `current`
    is false for a process of a generation that comes or goes, which has nothing to be ready for.
    """

    name: str
    pid: int
    counters: dict[str, int] = {}
    ready: bool = True
    restarts: int = 0
    uptime: float = 0.0
    resident: int = 0
    proportional: int = 0
    current: bool = True

    @property
    def role(self) -> str:
        """The name without its number."""
        return self.name.partition("-")[0]


class CertificateExpiry(Struct, frozen=True):
    """When a listener's certificate ends; the fingerprint is SHA-256 in hex."""

    listener: str
    subject: str
    fingerprint: str
    not_after: float


class Reloads(Struct, frozen=True):
    """How the reloads went; `last` is when one last worked (0: none yet), `error` why one did not.

    `error` is empty again when a later one works.
    """

    ok: int = 0
    failed: int = 0
    last: float = 0.0
    error: str = ""


class HandshakeCount(Struct, frozen=True):
    """How many handshakes gave a session of this kind."""

    version: str
    ciphersuite: str
    group: str
    count: int


class FailureCount(Struct, frozen=True):
    """How many handshakes gave none, for this reason."""

    outcome: str
    reason: str
    count: int


class ProcessGauge(Struct, frozen=True):
    """A gauge of one process, as in `counters`."""

    process: str
    name: str
    labels: dict[str, str]
    value: float


class Status(Struct, frozen=True):
    """What `handfast status` tells.

    `totals` are sums of the processes' counters since the start, those that have ended included.
    `kernel_tls` are the kernel's counters (/proc/net/tls_stat), empty where it has no TLS.
    """

    version: str
    pid: int
    uptime: float
    state: State
    config: str
    listeners: tuple[ListenerStatus, ...]
    processes: tuple[ProcessStatus, ...]
    totals: dict[str, int]
    generation: int = 1
    reloads: Reloads = Reloads()
    certificates: tuple[CertificateExpiry, ...] = ()
    handshakes: tuple[HandshakeCount, ...] = ()
    failures: tuple[FailureCount, ...] = ()
    refused: dict[str, int] = {}
    handshaking: int = 0
    handshake_seconds: Histogram = field(default_factory=Histogram)
    connect_seconds: Histogram = field(default_factory=Histogram)
    stall_seconds: Histogram = field(default_factory=Histogram)
    gauges: tuple[ProcessGauge, ...] = ()
    kernel_tls: dict[str, int] = {}

    def sessions(self) -> dict[str, int]:
        """Count the sessions of all relays by their transport."""
        sums: dict[str, int] = {}
        for each in self.gauges:
            if each.name == SESSIONS:
                home = each.labels.get("transport", "")
                sums[home] = sums.get(home, 0) + int(each.value)
        return sums

    def unready(self) -> str:
        """Say why new connections may not be served; empty when they are."""
        if self.state != "serving":
            return self.state
        current = (each for each in self.processes if each.current)
        missing = [each.name for each in current if not (each.pid and each.ready)]
        return f"not ready: {', '.join(missing)}" if missing else ""
