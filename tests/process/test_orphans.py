"""As process 1 of a container, the supervisor inherits the children of others, and buries them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from harness.instance import Instance, wait_for

if TYPE_CHECKING:
    from conftest import Certificates
    from harness.backends import Backend

# PR_SET_CHILD_SUBREAPER makes a process inherit orphans as process 1 does.
_SUBREAPER = "import ctypes\nctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"


def zombies_of(parent: int) -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, ppid = rest.split()[:2]
        if state == "Z" and int(ppid) == parent:
            found.append(name)
    return found


def test_acceptors_that_lose_their_template_leave_no_zombies(
    tmp_path: Path, certificates: Certificates, backend: Backend
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_SUBREAPER)
    config = tmp_path / "handfast.yaml"
    config.write_text(
        f"nworkers: 4\ncontrol: {tmp_path}/control.sock\n"
        f"listeners:\n  - listen: '127.0.0.1:0'\n    target: '{backend.target}'\n"
        f"    certificates:\n      - chain: {certificates.chain}\n        key: {certificates.key}\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with Instance(config, {"PYTHONPATH": path}) as running:
        for count in range(2, 5):
            os.kill(running.pids()["template"], signal.SIGKILL)
            running.wait("worker", count, worker_state="spawned", worker_id="acceptor-4")

        wait_for(lambda: not zombies_of(running.process.pid), "every orphan is buried")
