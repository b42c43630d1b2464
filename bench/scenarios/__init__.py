"""What is measured: each scenario is a load, and the figures that it gives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench import measure
from bench.figures import Better
from bench.running import Running, Site
from bench.systems import System

MB: Final = 1_000_000
GB: Final = 1_000_000_000


class AbsentError(Exception):
    """A system cannot do what a scenario asks for; the text says why, for the reader."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of each load one measurement is, and how often it is repeated."""

    rounds: int
    seconds: int
    bulk: int
    requests: int
    fresh_rounds: int
    """Rounds of those scenarios that take long, as when each system is started afresh."""
    sizes: tuple[int, ...]
    held: int
    post_quantum: int
    reloads: int
    workers: tuple[int, ...]
    certificates: tuple[int, ...]


FULL: Final = Amount(
    rounds=3,
    seconds=1,
    bulk=1 << 30,
    requests=20_000,
    fresh_rounds=2,
    sizes=(1, 10, 100, 1000, 3000, 10_000),
    held=10_000,
    post_quantum=400,
    reloads=3,
    workers=(1, 2, 4, 8),
    certificates=(1, 10, 100, 1000),
)
QUICK: Final = Amount(
    rounds=2,
    seconds=1,
    bulk=1 << 28,
    requests=5_000,
    fresh_rounds=1,
    sizes=(1, 1000),
    held=1000,
    post_quantum=100,
    reloads=1,
    workers=(1,),
    certificates=(1,),
)
SMOKE: Final = Amount(
    rounds=1,
    seconds=1,
    bulk=1 << 24,
    requests=200,
    fresh_rounds=1,
    sizes=(1, 100),
    held=50,
    post_quantum=10,
    reloads=1,
    workers=(1, 2),
    certificates=(1, 3),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A figure of a scenario, in the words of `bench.figures.Row`."""

    scenario: str
    figure: str
    unit: str
    better: Better = "lower"


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure of one round."""

    kind: Kind
    value: float
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """What a scenario is given: a system, and the one that runs already, if it may be used."""

    system: System
    site: Site
    amount: Amount
    standing: Running | None = None

    @property
    def running(self) -> Running:
        """The one that runs already."""
        assert self.standing is not None
        return self.standing


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load. With `fresh` it starts the system itself. Raises AbsentError, LoadError."""

    name: str
    kinds: tuple[Kind, ...]
    measure: Callable[[Stage], list[Measured]]
    fresh: bool = False
    long: bool = False

    @property
    def slow(self) -> bool:
        """Whether it has fewer rounds."""
        return self.fresh or self.long


@dataclass(frozen=True, slots=True)
class Work:
    """What some work took: seconds by the clock and of CPU, and how many units it was."""

    elapsed: float
    cpu: float
    units: float

    @property
    def each(self) -> float:
        """Microseconds of CPU for a unit."""
        return 1e6 * self.cpu / self.units

    @property
    def busy(self) -> float:
        """The share of the time that the core worked for the system."""
        return self.cpu / self.elapsed


def worked(proxy: Running, work: Callable[[], float]) -> Work:
    """Do `work`, which gives its units, and see what it took of the whole process tree."""
    before = measure.quiet_cpu_seconds(proxy.pid)
    began = time.monotonic()
    units = work()
    elapsed = time.monotonic() - began
    return Work(elapsed, measure.quiet_cpu_seconds(proxy.pid) - before, units)
