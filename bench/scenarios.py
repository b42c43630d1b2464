"""What is measured, how much of it, and the targets that handfast has set itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench import load, measure
from bench.systems import Running, Site, System, running

IDLE_TARGET: Final = 6.0
"""KB of user memory that an idle connection may take."""
KEPT: Final = 16
"""Connections that small requests go over."""
MB: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of each load one measurement is, and how often it is repeated."""

    rounds: int
    connections: int
    requests: int
    bulk: int
    idle: int
    idle_rounds: int


FULL: Final = Amount(5, 3000, 60_000, 1500 * MB, 3000, 3)
QUICK: Final = Amount(3, 1000, 20_000, 500 * MB, 1000, 1)
WARM_UP: Final = Amount(1, 200, 1_000, 30 * MB, 0, 0)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement: the cost of one unit, and the share of the time that the core worked."""

    cost: float
    busy: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load. `target` is the most that handfast may cost, as a ratio to stunnel."""

    name: str
    unit: str
    measure: Callable[[Running, Amount], Figure]
    target: float


def _cpu(system: Running, work: Callable[[], None], units: float) -> Figure:
    """Give the CPU seconds of the proxy for one of `units`."""
    before = measure.quiet_cpu_seconds(system.pid)
    started = time.monotonic()
    work()
    elapsed = time.monotonic() - started
    used = measure.quiet_cpu_seconds(system.pid) - before
    return Figure(used / units, used / elapsed)


def _connections(system: Running, amount: Amount) -> Figure:
    lines = system.log_lines()
    count = amount.connections
    figure = _cpu(system, lambda: load.connections(system.client, count), count / 1e6)
    if system.log_lines() - lines < count:
        raise measure.MeasureError(
            f"{system.name} did not log every connection, so it cannot be compared"
        )
    return figure


def _requests(system: Running, amount: Amount) -> Figure:
    with load.kept(system.client, KEPT) as held:
        return _cpu(system, lambda: load.requests(held, amount.requests), amount.requests / 1e6)


def _bulk(streams: int) -> Callable[[Running, Amount], Figure]:
    def download(system: Running, amount: Amount) -> Figure:
        size = amount.bulk
        work = _cpu(system, lambda: load.bulk(system.client, size, streams), size / (100 * MB))
        return Figure(work.cost * 1000, work.busy)

    return download


CPU_SCENARIOS: Final = (
    Scenario("new connection", "us CPU", _connections, target=0.9),
    Scenario(f"small request, {KEPT} kept", "us CPU", _requests, target=0.75),
    Scenario("bulk down, 1 stream", "ms CPU/100 MB", _bulk(1), target=0.75),
    Scenario("bulk down, 4 streams", "ms CPU/100 MB", _bulk(4), target=0.75),
)


@dataclass(frozen=True, slots=True)
class Idle:
    """User memory in KB (1000 bytes) per idle connection, after some connections have ended."""

    pss: float
    private: float


def idle(system: System, site: Site, amount: Amount) -> Idle:
    """Start `system` afresh, and measure it without and with `amount.idle` connections.

    Afresh, since memory that an earlier load left free would hide what these connections take.
    """
    with running(system, site) as proxy:
        load.connections(proxy.client, WARM_UP.connections)
        measure.quiet_cpu_seconds(proxy.pid)
        without = measure.memory(proxy.pid)
        with load.kept(proxy.client, amount.idle):
            measure.quiet_cpu_seconds(proxy.pid)
            taken = measure.memory(proxy.pid)
    each = 1000 * amount.idle
    return Idle((taken.pss - without.pss) / each, (taken.private - without.private) / each)
