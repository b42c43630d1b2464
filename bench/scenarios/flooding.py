"""What becomes of established connections when more handshakes are begun than can be done."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

from bench import generators, load
from bench.scenarios import Kind, Measured, Scenario, Stage, worked
from bench.systems import REPOSITORY

_SCENARIO: Final = "handshake flood"
_BEFORE: Final = Kind(_SCENARIO, "p99 without", "ms")
_DURING: Final = Kind(_SCENARIO, "p99", "ms")
_OFFERED: Final = Kind(_SCENARIO, "offered", "handshakes/s", "higher")
_ANSWERED: Final = Kind(_SCENARIO, "answered", "handshakes/s", "higher")
PACE: Final = 800
"""Requests a second over the established connections."""
_SETTLED: Final = 0.5
"""Seconds after which the connections are established, and a flood has filled every queue."""


def _flood(stage: Stage) -> list[Measured]:
    """Offer twice as many handshakes as the core can do, by what one has just cost."""
    proxy, seconds = stage.running, stage.amount.seconds + 1
    port, directory = proxy.ecdsa.port, stage.site.directory
    with generators.paced(port, PACE, seconds, directory) as before:
        before.since = time.time() + _SETTLED
    cost = worked(proxy, lambda: generators.handshakes(port, 1)).each
    rate = 2e6 / cost
    with generators.paced(port, PACE, seconds, directory) as during:
        time.sleep(_SETTLED)
        during.since = time.time() + _SETTLED
        flooding = seconds - 2 * _SETTLED
        said = subprocess.run(
            [sys.executable, "-m", "bench.flood", str(port), str(rate), str(flooding)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=seconds + load.PATIENCE,
            check=True,
        ).stdout
    begun, answered = (int(word) for word in said.split())
    return [
        Measured(_BEFORE, before.quantile(0.99)),
        Measured(_DURING, during.quantile(0.99)),
        Measured(_OFFERED, begun / flooding),
        Measured(_ANSWERED, answered / flooding),
    ]


SCENARIOS: Final = (
    Scenario(_SCENARIO, (_BEFORE, _DURING, _OFFERED, _ANSWERED), _flood, long=True),
)
