"""How costs grow with workers and certificates; with connections, see `holding`."""

from __future__ import annotations

from functools import partial
from typing import Final

from bench import generators, load, measure
from bench.certificates import issue
from bench.running import start
from bench.scenarios import AbsentError, Kind, Measured, Scenario, Stage, worked

_WORKERS: Final = "grow: workers"
_CERTIFICATES: Final = "grow: certificates"


def _kinds(scenario: str) -> tuple[Kind, Kind, Kind]:
    return (
        Kind(scenario, "time to start", "ms"),
        Kind(scenario, "memory", "MB"),
        Kind(scenario, "CPU of a new connection", "us"),
    )


def _workers(stage: Stage) -> list[Measured]:
    if stage.system.one_worker:
        raise AbsentError(stage.system.one_worker)
    time, memory, cpu = _kinds(_WORKERS)
    measured = []
    for count in stage.amount.workers:
        with start(stage.system, stage.site, workers=count) as proxy:
            measure.quiet_cpu_seconds(proxy.pid)
            measured.append(Measured(time, 1000 * proxy.seconds, count))
            measured.append(Measured(memory, measure.memory(proxy.pid) / 1e6, count))
            work = partial(generators.handshakes, proxy.ecdsa.port, stage.amount.seconds)
            done = worked(proxy, work)
            measured.append(Measured(cpu, done.each, count))
    return measured


def _certificates(stage: Stage) -> list[Measured]:
    """The client asks for the last one."""
    if stage.system.one_certificate:
        raise AbsentError(stage.system.one_certificate)
    time, memory, cpu = _kinds(_CERTIFICATES)
    measured = []
    names = [f"host{number}.test" for number in range(1, max(stage.amount.certificates))]
    made = tuple(issue(stage.site.directory, name, name) for name in names)
    for count in stage.amount.certificates:
        with start(stage.system, stage.site, certificates=made[: count - 1]) as proxy:
            measure.quiet_cpu_seconds(proxy.pid)
            measured.append(Measured(time, 1000 * proxy.seconds, count))
            measured.append(Measured(memory, measure.memory(proxy.pid) / 1e6, count))
            last, name = (made[count - 2], names[count - 2]) if count > 1 else (None, "localhost")
            to = load.client(
                proxy.ecdsa.port, last.chain if last else stage.site.ecdsa.chain, load.HTTP, name
            )
            done = worked(proxy, partial(_connections, to, stage.amount.requests // 20))
            measured.append(Measured(cpu, done.each, count))
    return measured


def _connections(to: load.Client, count: int) -> float:
    load.connections(to, count)
    return count


SCENARIOS: Final = (
    Scenario(_WORKERS, _kinds(_WORKERS), _workers, fresh=True),
    Scenario(_CERTIFICATES, _kinds(_CERTIFICATES), _certificates, fresh=True),
)
