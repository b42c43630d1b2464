"""The steps of the Dockerfile, followed without Docker, and what comes of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Certificates

_PACKAGING = Path(__file__).parents[2] / "packaging"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, which is root's to do"),
    pytest.mark.timeout(300),  # it installs handfast, which takes as long as the network does
]


@pytest.fixture(scope="module")
def container(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> dict[str, Any]:
    """Build and run the image once, with a configuration that the container's user can read."""
    etc = tmp_path_factory.mktemp("etc")
    shutil.copy(certificates.chain, etc / "chain.pem")
    shutil.copy(certificates.key, etc / "key.pem")
    (etc / "handfast.yaml").write_text(
        "nworkers: 1\nlisteners:\n  - listen: 127.0.0.1:0\n    target: tcp://127.0.0.1:9\n"
        "    certificates: [{chain: chain.pem, key: key.pem}]\n"
    )
    for each in etc.iterdir():
        each.chmod(0o444)
    etc.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(_PACKAGING / "run_steps.py"), "--etc", str(etc)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen: dict[str, Any] = json.loads(done.stdout)
    seen["output"] = done.stderr
    return seen


def test_the_health_check_sees_that_it_serves(container: dict[str, Any]) -> None:
    assert container["healthy"], (container["status"], container["output"][-4000:])
    assert container["status"]["pid"] == 1


def test_process_1_has_no_rights_and_ends_in_order_on_the_stop_signal(
    container: dict[str, Any],
) -> None:
    assert container["pids"] == ["1"]
    assert container["uids"] == [["65532", "65532"]]
    assert container["exit"] == 0
    assert container["output"].rstrip().endswith("event=stopped")


def test_commands_are_run_without_a_shell_which_would_keep_the_signals(
    container: dict[str, Any],
) -> None:
    image = container["image"]
    assert json.loads(image["ENTRYPOINT"]) == ["handfast"]
    assert json.loads(image["CMD"])[0] == "serve"
    assert image["STOPSIGNAL"] == "SIGTERM"
