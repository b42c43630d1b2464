"""Reloads and upgrades under load, and starting: what is lost, and how long it takes."""

from __future__ import annotations

import os
import ssl
import time
from functools import partial
from typing import Final

from bench import load, measure
from bench.certificates import issue
from bench.crowd import crowd
from bench.running import Running, start, wait_for
from bench.scenarios import AbsentError, Kind, Measured, Scenario, Stage

_RELOAD: Final = "reload under load"
_FAILED: Final = Kind(_RELOAD, "failed", "connections")
_DISTURBED: Final = Kind(_RELOAD, "disturbed", "connections")
_STALL: Final = Kind(_RELOAD, "longest stall", "ms")
_TAKES: Final = Kind(_RELOAD, "until the new certificate", "ms")

_UPGRADE: Final = "upgrade with connections open"
_KEPT: Final = Kind(_UPGRADE, "kept", "share", "higher")
_LONGEST: Final = Kind(_UPGRADE, "longest stall", "ms")
_LOST: Final = Kind(_UPGRADE, "new connections failed", "connections")
_OLD: Final = Kind(_UPGRADE, "old processes after it", "processes")

_START: Final = "start"
_TIME: Final = Kind(_START, "time", "ms")
_BASE: Final = Kind(_START, "base memory", "MB")
_WHOLE: Final = Kind("whole installation, two workers", "memory", "MB")

STAYING: Final = 16
BUSY: Final = 100
_AFTER: Final = 2.0
"""Seconds that the clients go on after it; those who end old processes have done it by then."""


def _reload(stage: Stage) -> list[Measured]:
    """Renew the certificate and reload, as often as the amount says."""
    takes = []
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE  # each reload has another certificate
    # The system has its own file, which is replaced.
    own = issue(stage.site.directory, f"renewed-{stage.system.name}-{time.monotonic_ns()}")
    with start(stage.system, stage.site.presenting(own)) as proxy:
        to = load.Client(proxy.ecdsa.port, trusting, load.HTTP)
        with load.kept(to, STAYING) as held, crowd(to, held) as seen:
            for _ in range(stage.amount.reloads):
                time.sleep(0.5)
                old = _presented(to)
                issue(stage.site.directory, own.chain.name.removesuffix(".chain.pem"))
                began = time.monotonic()
                os.kill(proxy.pid, stage.system.reload)
                wait_for(partial(_renewed, to, old), "the new certificate", pause=0.01)
                takes.append(time.monotonic() - began)
            time.sleep(_AFTER)
    return [
        Measured(_FAILED, len(seen.failed)),
        Measured(_DISTURBED, len(seen.disturbed)),
        Measured(_STALL, 1000 * seen.longest),
        Measured(_TAKES, 1000 * max(takes)),
    ]


def _presented(to: load.Client) -> bytes | None:
    """Give the certificate that a new connection sees; None when there is no new connection."""
    try:
        with to.connect() as connection:
            return connection.getpeercert(binary_form=True)
    except OSError:
        return None


def _renewed(to: load.Client, old: bytes | None) -> bool:
    return _presented(to) not in {None, old}


def _upgrade(stage: Stage) -> list[Measured]:
    """Replace the program while connections are open, some of them busy."""
    upgrade = stage.system.upgrade
    if upgrade is None:
        raise AbsentError("has no upgrade")
    count = min(stage.amount.held, stage.site.connections)
    with start(stage.system, stage.site) as proxy, load.kept(proxy.ecdsa, count) as held:
        busy = held[: min(BUSY, count // 2)]
        before = {each.pid for each in measure.tree(proxy.pid)}
        before -= {proxy.pid} if stage.system.keeps_pid else set()
        with crowd(proxy.ecdsa, list(busy)) as seen:
            time.sleep(0.5)
            seen.longest = 0.0
            upgrade(proxy.plan, proxy.pid)
            time.sleep(_AFTER)
        kept = sum(_goes_on(proxy, each) for each in held)
        old = before & {each.pid for each in measure.tree(proxy.pid) if each.state != "Z"}
    return [
        Measured(_KEPT, kept / count, count),
        Measured(_LONGEST, 1000 * seen.longest, count),
        Measured(_LOST, len(seen.failed), count),
        Measured(_OLD, len(old), count),
    ]


def _goes_on(proxy: Running, connection: load.Held) -> bool:
    try:
        proxy.ecdsa.exchange(connection)
    except (OSError, load.LoadError):
        return False
    return True


def _start(stage: Stage) -> list[Measured]:
    with start(stage.system, stage.site) as proxy:
        measure.quiet_cpu_seconds(proxy.pid)
        base = measure.memory(proxy.pid) / 1e6
    return [Measured(_TIME, 1000 * proxy.seconds), Measured(_BASE, base)]


def _whole(stage: Stage) -> list[Measured]:
    if stage.system.one_worker:
        raise AbsentError(stage.system.one_worker)
    with start(stage.system, stage.site, workers=2) as proxy:
        measure.quiet_cpu_seconds(proxy.pid)
        return [Measured(_WHOLE, measure.memory(proxy.pid) / 1e6)]


SCENARIOS: Final = (
    Scenario(_RELOAD, (_FAILED, _DISTURBED, _STALL, _TAKES), _reload, fresh=True),
    Scenario(_UPGRADE, (_KEPT, _LONGEST, _LOST, _OLD), _upgrade, fresh=True),
    Scenario(_START, (_TIME, _BASE), _start, fresh=True),
    Scenario(_WHOLE.scenario, (_WHOLE,), _whole, fresh=True),
)
