"""What becomes of established connections when more handshakes are begun than can be done."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

from bench import generators, load
from bench.scenarios import Kind, Measured, Scenario, Stage
from bench.systems import REPOSITORY

_SCENARIO: Final = "handshake flood"
_BEFORE: Final = Kind(_SCENARIO, "p99 without", "ms")
_DURING: Final = Kind(_SCENARIO, "p99", "ms")
_OFFERED: Final = Kind(_SCENARIO, "offered", "handshakes/s", "higher")
_ANSWERED: Final = Kind(_SCENARIO, "answered", "handshakes/s", "higher")
PACE: Final = 800
"""Requests a second over the established connections."""
_SETTLED: Final = 0.5
"""Seconds after which a flood has filled every queue."""


def _flood(stage: Stage) -> list[Measured]:
    """Offer twice as many handshakes as the system has just shown that it can do."""
    port, seconds = stage.running.ecdsa.port, stage.amount.seconds + 1
    directory = stage.site.directory
    with generators.paced(port, PACE, stage.amount.seconds, directory) as before:
        pass
    began = time.monotonic()
    done = generators.handshakes(port, 1)
    rate = 2 * done / (time.monotonic() - began)
    with generators.paced(port, PACE, seconds, directory) as during:
        time.sleep(_SETTLED)  # its connections are established before
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


SCENARIOS: Final = (Scenario(_SCENARIO, (_BEFORE, _DURING, _OFFERED, _ANSWERED), _flood),)
