"""Connections that are only open: what they take, and what a request costs among so many."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from typing import Final

from bench import load, measure
from bench.running import Running, Site, start
from bench.scenarios import Kind, Measured, Scenario, Stage, worked

_MEMORY: Final = Kind("idle connection", "memory", "KB")
_KERNEL: Final = Kind("idle connection", "kernel memory", "KB")
_CPU: Final = Kind("grow: connections", "CPU of a request", "us")
_ENOUGH: Final = 100
"""Connections from which on the memory of one can be told."""
_ENOUGH_OF_KERNEL: Final = 1000
"""The same for the kernel's, which is that of the whole machine, and moves by itself."""


@cache
def _direct(site: Site, count: int) -> float:
    """Give the kernel's bytes for a connection from the load to the backend, without a proxy."""
    with ExitStack() as closing:
        before = measure.kernel_memory()
        for _ in range(count):
            plain = closing.enter_context(load.Client(site.target, None).connect_plain())
            load.exchange(plain, load.HTTP)
        return (measure.kernel_memory() - before) / count


def _hold(stage: Stage) -> list[Measured]:
    """Open more and more connections to a system that has had some, but not many, before.

    Started afresh, since memory that an earlier load left free would hide what these take.
    """
    measured = []
    sizes = dict.fromkeys(min(size, stage.site.connections) for size in stage.amount.sizes)
    with start(stage.system, stage.site) as proxy, ExitStack() as closing:
        load.connections(proxy.ecdsa, 200)
        measure.quiet_cpu_seconds(proxy.pid)
        without, kernel_without = measure.memory(proxy.pid), measure.kernel_memory()
        held: list[load.Held] = []
        for size in sizes:
            load.more(proxy.ecdsa, size - len(held), held, closing)
            measure.quiet_cpu_seconds(proxy.pid)
            if size >= _ENOUGH:
                pss = (measure.memory(proxy.pid) - without) / size
                measured.append(Measured(_MEMORY, pss / 1000, size))
            if size >= _ENOUGH_OF_KERNEL:
                kernel = (measure.kernel_memory() - kernel_without) / size
                kernel -= _direct(stage.site, size)
                measured.append(Measured(_KERNEL, kernel / 1000, size))
            measured.append(Measured(_CPU, _request(proxy, held, stage.amount.requests), size))
    return measured


def _request(proxy: Running, held: list[load.Held], count: int) -> float:
    def work() -> float:
        load.requests(held, max(count, len(held)), proxy.ecdsa.protocol)
        return max(count, len(held))

    return worked(proxy, work).each


SCENARIOS: Final = (Scenario("idle connections", (_MEMORY, _KERNEL, _CPU), _hold, fresh=True),)
