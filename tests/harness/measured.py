"""Results that nobody measured: invented figures of the right shape, to draw and compare."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Final

from bench.figures import Better, Results, Row

SYSTEMS: Final = ("handfast", "nginx", "hitch", "haproxy", "stunnel")
NEW_CONNECTIONS: Final = {
    "ECDSA, full": (520.0, 430.0, 410.0, 470.0, 870.0),
    "RSA-2048, full": (1080.0, 960.0, 955.0, 990.0, 1390.0),
    "ECDSA, resumed": (390.0, 310.0, 300.0, 345.0, 705.0),
    "RSA-2048, resumed": (395.0, 312.0, 301.0, 344.0, 710.0),
    "TLS 1.2, full": (540.0, 445.0, 420.0, 490.0, 880.0),
    "ML-KEM": (640.0, 560.0, None, None, None),
}
NO_UPGRADE: Final = "has no binary upgrade"


class _Invention:
    """Collects rows, with rounds around a figure. The same `seed` gives the same rows."""

    def __init__(self, seed: int, rounds: int) -> None:
        self._random = random.Random(seed)
        self._rounds = rounds
        self.rows: list[Row] = []

    def add(
        self,
        scenario: str,
        figure: str,
        unit: str,
        values: Iterable[float | None],
        *,
        why: str = "the peer cannot",
        at: int | None = None,
        better: Better = "lower",
        spread: float = 0.05,
    ) -> None:
        """Add a row for each system; `values` are theirs in order, None for a missing figure."""
        for system, value in zip(SYSTEMS, values, strict=True):
            rounds = (
                []
                if value is None
                else [
                    round(value * (1 + self._random.uniform(-spread, spread)), 4)
                    for _ in range(self._rounds)
                ]
            )
            reason = "" if rounds else why
            self.rows.append(Row(scenario, system, figure, unit, better, at, rounds, reason))


def results(*, seed: int = 1, rounds: int = 5, faster: float = 1.0) -> Results:
    """Invent what a whole run gives. handfast needs `faster` of its usual CPU time."""
    made = _Invention(seed, rounds)
    _connections(made, faster)
    _requests_and_bulk(made, faster)
    _holding(made)
    _incidents(made)
    _growth(made, faster)
    return Results({"kernel": "6.1", "revision": f"invented {seed}"}, made.rows)


def only(whole: Results, keep: Callable[[Row], bool]) -> Results:
    """Leave the rows out that `keep` is false for."""
    return Results(whole.environment, [row for row in whole.rows if keep(row)])


def _first(values: Iterable[float | None], factor: float) -> list[float | None]:
    ours, *others = values
    return [None if ours is None else ours * factor, *others]


def _connections(made: _Invention, faster: float) -> None:
    for name, values in NEW_CONNECTIONS.items():
        scenario, why = f"new connection, {name}", "OpenSSL 3.0 has no ML-KEM"
        made.add(scenario, "CPU", "us", _first(values, faster), why=why)
        rates = [None if value is None else 1e6 / value for value in values]
        made.add(scenario, "rate", "connections/s", rates, better="higher", why=why)
        busy = [None if value is None else 0.98 for value in values]
        made.add(scenario, "busy", "share", busy, better="higher", why=why, spread=0.02)


def _requests_and_bulk(made: _Invention, faster: float) -> None:
    made.add("small request", "CPU", "us", _first((13.8, 12.9, 15.2, 13.1, 27.4), faster))
    latencies = {
        "p50": (0.21, 0.19, 0.21, 0.2, 0.31),
        "p99": (0.62, 0.66, 0.71, 0.64, 1.4),
        "p99.9": (1.9, 2.4, 2.6, 2.1, 6.2),
    }
    for name, values in latencies.items():
        made.add("latency at a fixed rate", name, "ms", values, spread=0.15)
    for scenario in ("bulk download", "bulk upload"):
        for streams, factor in ((1, 1.0), (32, 1.1)):
            costs = [factor * each for each in (0.31, 0.58, 0.66, 0.6, 1.21)]
            made.add(scenario, "CPU", "s/GB", _first(costs, faster), at=streams, spread=0.12)
            speeds = [1000 / each for each in costs]
            made.add(scenario, "throughput", "MB/s", speeds, at=streams, better="higher")


def _holding(made: _Invention) -> None:
    for connections in (3000, 10000):
        at = connections
        made.add("idle connection", "memory", "KB", (2.9, 24.1, 41.0, 36.2, 87.8), at=at)
        made.add("idle connection", "kernel memory", "KB", (9.1, 9.0, 9.2, 9.3, 17.4), at=at)
    made.add("whole installation, two workers", "memory", "MB", (54.0, None, None, None, None))
    made.add("start", "time", "ms", (410.0, 22.0, 14.0, 31.0, 18.0))
    made.add("start", "base memory", "MB", (48.0, 6.2, 5.1, 11.4, 4.9))


def _incidents(made: _Invention) -> None:
    made.add("handshake flood", "p99", "ms", (2.1, 38.0, 41.0, 36.0, 9.3), spread=0.2)
    made.add("handshake flood", "p99 without", "ms", (0.6, 0.6, 0.7, 0.65, 1.2), spread=0.2)
    made.add("reload under load", "failed", "connections", (0, 0, 0, 3, 212), spread=0)
    made.add("reload under load", "disturbed", "connections", (0, 0, 0, 11, 640), spread=0)
    scenario, why = "upgrade with connections open", NO_UPGRADE
    kept = (1.0, 1.0, None, None, None)
    made.add(scenario, "kept", "share", kept, at=10000, better="higher", why=why, spread=0)
    made.add(scenario, "longest stall", "ms", (84.0, 131.0, None, None, None), at=10000, why=why)


def _growth(made: _Invention, faster: float) -> None:
    for at in (1, 10, 100, 1000, 10000):
        costs = [each * (1 + at / 20000) for each in (13.8, 12.9, 15.2, 13.1, 27.4)]
        made.add("grow: connections", "CPU", "us", _first(costs, faster), at=at)
        sizes = [a + at * b / 1000 for a, b in ((48, 3), (6.2, 24), (5.1, 41), (11, 36), (5, 88))]
        made.add("grow: connections", "memory", "MB", sizes, at=at)
    memory: list[float | None]
    for at in (1, 2, 4, 8):
        rates = [at / (1 + 0.08 * at) * each for each in (1900, 2300, 2400, 2100, 1150)]
        why = "has one process"
        made.add("grow: workers", "rate", "connections/s", [*rates[:4], None], at=at,
                 better="higher", why=why)  # fmt: skip
        memory = [20 + at * 18, 5 + at * 3, 4 + at * 2.5, 11 + at * 1.5, None]
        made.add("grow: workers", "memory", "MB", memory, at=at, why=why)
    for at in (1, 10, 100, 1000):
        times: list[float | None] = [400 + at * 0.5, 20 + at * 0.8, 13 + at * 0.6, 30 + at, None]
        why = "takes no more than one"
        made.add("grow: certificates", "start", "ms", times, at=at, why=why)
        memory = [48 + at * 0.01, 6 + at * 0.05, 5 + at * 0.06, 11 + at * 0.04, None]
        made.add("grow: certificates", "memory", "MB", memory, at=at, why=why)
        prices: list[float | None] = [
            522 + at * 0.01,
            431 + at * 0.01,
            411 + at * 0.02,
            470 + at * 0.02,
            None,
        ]
        made.add("grow: certificates", "CPU", "us", _first(prices, faster), at=at, why=why)
