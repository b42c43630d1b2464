"""New connections, small requests and bulk: what the systems cost while they carry data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench import generators, measure
from bench.post_quantum import GroupError, connections
from bench.running import Running
from bench.scenarios import GB, MB, AbsentError, Kind, Measured, Scenario, Stage, worked

PACE: Final = 4000
"""Requests a second at which latency is measured: far below what any of the systems can do."""


def _connections(name: str, load: Callable[[Running, int], int]) -> Scenario:
    scenario = f"new connection, {name}"
    cpu, rate = Kind(scenario, "CPU", "us"), Kind(scenario, "rate", "connections/s", "higher")
    busy = Kind(scenario, "busy", "share", "higher")

    def run(stage: Stage) -> list[Measured]:
        proxy = stage.running
        before = proxy.log_lines()
        done = worked(proxy, lambda: load(proxy, stage.amount.seconds))
        if proxy.log_lines() - before < 0.99 * done.units:
            raise measure.MeasureError(f"{proxy.name} did not log every connection")
        return [
            Measured(cpu, done.each),
            Measured(rate, done.units / done.elapsed),
            Measured(busy, done.busy),
        ]

    return Scenario(scenario, (cpu, rate, busy), run)


def _full(port: Callable[[Running], int], *, tls_12: bool = False) -> Callable[[Running, int], int]:
    return lambda proxy, seconds: generators.handshakes(port(proxy), seconds, tls_12=tls_12)


def _ecdsa(proxy: Running) -> int:
    return proxy.ecdsa.port


def _rsa(proxy: Running) -> int:
    return proxy.rsa_port


def _resumed(port: Callable[[Running], int]) -> Callable[[Running, int], int]:
    return lambda proxy, seconds: generators.wrk(port(proxy), seconds, kept=False)


def _ml_kem() -> Scenario:
    scenario = "new connection, ML-KEM"
    cpu = Kind(scenario, "CPU", "us")

    def run(stage: Stage) -> list[Measured]:
        proxy, count = stage.running, stage.amount.post_quantum
        try:
            done = worked(proxy, lambda: connections(proxy.ecdsa, count))
        except GroupError as error:
            raise AbsentError(str(error)) from error
        return [Measured(cpu, done.each)]

    return Scenario(scenario, (cpu,), run)


def _requests() -> Scenario:
    scenario = "small request"
    cpu, rate = Kind(scenario, "CPU", "us"), Kind(scenario, "rate", "requests/s", "higher")
    busy = Kind(scenario, "busy", "share", "higher")

    def run(stage: Stage) -> list[Measured]:
        port = stage.running.ecdsa.port
        done = worked(stage.running, lambda: generators.wrk(port, stage.amount.seconds, kept=True))
        return [
            Measured(cpu, done.each),
            Measured(rate, done.units / done.elapsed),
            Measured(busy, done.busy),
        ]

    return Scenario(scenario, (cpu, rate, busy), run)


def _latency() -> Scenario:
    scenario = "latency at a fixed rate"
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    kinds = {name: Kind(scenario, name, "ms") for name in shares}

    def run(stage: Stage) -> list[Measured]:
        port, seconds = stage.running.ecdsa.port, stage.amount.seconds
        with generators.paced(port, PACE, seconds, stage.site.directory) as pacing:
            pass
        return [Measured(kinds[name], pacing.quantile(share)) for name, share in shares.items()]

    return Scenario(scenario, tuple(kinds.values()), run)


def _bulk(name: str, load: Callable[[Stage, int], float], streams: int) -> Scenario:
    scenario = f"bulk {name}"
    cpu, rate = Kind(scenario, "CPU", "s/GB"), Kind(scenario, "throughput", "MB/s", "higher")

    def run(stage: Stage) -> list[Measured]:
        size = stage.amount.bulk
        seconds = 0.0

        def work() -> float:
            nonlocal seconds
            seconds = load(stage, streams)
            return size

        done = worked(stage.running, work)
        return [
            Measured(cpu, done.cpu / size * GB, streams),
            Measured(rate, size / MB / seconds, streams),
        ]

    return Scenario(f"{scenario}, {streams}", (cpu, rate), run)


def _download(stage: Stage, streams: int) -> float:
    return generators.download(stage.running.ecdsa.port, stage.amount.bulk, streams)


def _upload(stage: Stage, streams: int) -> float:
    port, size = stage.running.ecdsa.port, stage.amount.bulk
    return generators.upload(port, size, streams, stage.site.directory)


SCENARIOS: Final = (
    _connections("ECDSA, full", _full(_ecdsa)),
    _connections("RSA-2048, full", _full(_rsa)),
    _connections("TLS 1.2, full", _full(_ecdsa, tls_12=True)),
    _connections("ECDSA, resumed", _resumed(_ecdsa)),
    _connections("RSA-2048, resumed", _resumed(_rsa)),
    _ml_kem(),
    _requests(),
    _latency(),
    _bulk("download", _download, 1),
    _bulk("download", _download, 32),
    _bulk("upload", _upload, 1),
    _bulk("upload", _upload, 32),
)
