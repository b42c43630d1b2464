"""The end that comes while handfast still starts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.instance import Instance

if TYPE_CHECKING:
    from conftest import Certificates


@pytest.mark.parametrize("by", ["signal", "command"])
def test_a_stop_while_the_files_are_read_ends_at_once(
    tmp_path: Path, certificates: Certificates, by: str
) -> None:
    key = tmp_path / "key.pem"
    os.mkfifo(key)  # nobody writes to it: the template waits
    config = tmp_path / "handfast.yaml"
    config.write_text(
        f"nworkers: 2\ncontrol: {tmp_path}/control.sock\nloglevel: DEBUG\ndrain-timeout: 60\n"
        "listeners:\n  - listen: '127.0.0.1:0'\n    target: 'tcp://127.0.0.1:9'\n"
        f"    certificates:\n      - chain: {certificates.chain}\n        key: {key}\n"
    )
    running = Instance(config)
    try:
        running.wait("worker", worker_id="relay-2", worker_state="spawned")
        began = time.monotonic()

        if by == "signal":
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(15) == 0
        else:
            stopped = running.command("stop")
            assert stopped.returncode == 0, stopped.stderr

        assert time.monotonic() - began < 15
        running.wait("stopped")
        assert not running.events("listening")
    finally:
        running.kill()
