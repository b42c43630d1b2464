"""Without a file: the embedded default, and one listener from the command line."""

from __future__ import annotations

import os
import re
import select
import shlex
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.clients import connect, echoes, trusting
from harness.instance import Instance
from harness.processes import run_handfast

if TYPE_CHECKING:
    from conftest import Certificates
    from harness.backends import Backend

TIMEOUT = 15.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Directories of its own. Root's control socket is the same for all: one default at a time."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    return {
        "XDG_STATE_HOME": str(tmp_path / "state of mind"),
        "XDG_RUNTIME_DIR": str(tmp_path / "runtime"),
    }


@pytest.fixture
def default(tmp_path: Path, environment: dict[str, str]) -> Iterator[Instance]:
    with Instance(tmp_path, environment, ("--listen", "127.0.0.1:0")) as running:
        yield running


def printed_curl_line(running: Instance) -> str:
    """Read what the user sees until the line to try."""
    stream = running.process.stderr
    assert stream is not None
    text = b""
    while not (found := re.search(rb"^ *(curl .*)\n", text, re.MULTILINE)):
        assert select.select([stream], [], [], TIMEOUT)[0], f"no curl line in {text!r}"
        text += os.read(stream.fileno(), 4096)
    return found[1].decode()


def development(environment: dict[str, str]) -> Path:
    return Path(environment["XDG_STATE_HOME"]) / "handfast" / "development"


def test_the_printed_curl_line_works_as_it_is_printed(default: Instance) -> None:
    line = printed_curl_line(default)

    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )

    assert line.startswith("curl --cacert ")
    assert line.endswith(f" https://localhost:{default.port()}/")
    assert done.returncode == 0, done.stderr
    assert "plain HTTP service that knows nothing of TLS" in done.stdout
    granted = default.wait("auth", outcome="granted")
    assert granted["tls_version"] == "TLSv1.3"


def test_the_keys_are_for_the_owner_only(default: Instance, environment: dict[str, str]) -> None:
    directory = development(environment)

    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in directory.glob("*-key.pem")}

    assert modes == {"ca-key.pem": 0o600, "localhost-key.pem": 0o600}
    assert stat.S_IMODE(directory.stat().st_mode) & 0o077 == 0


def test_a_second_start_uses_the_same_ca_and_certificate(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    found = []

    for _ in range(2):
        with Instance(tmp_path, environment, ("--listen", "127.0.0.1:0")) as running:
            printed_curl_line(running)
        files = sorted(development(environment).iterdir())
        found.append({each.name: each.read_bytes() for each in files})

    assert found[0] == found[1]
    assert set(found[0]) == {"ca.pem", "ca-key.pem", "localhost.pem", "localhost-key.pem"}


def test_status_and_stop_find_the_default_without_a_file(
    default: Instance, environment: dict[str, str]
) -> None:
    status = run_handfast("status", environment=environment)
    stop = run_handfast("stop", environment=environment)

    assert status.returncode == stop.returncode == 0
    assert "serving" in status.stdout
    assert "the embedded default" in status.stdout
    assert default.process.wait(TIMEOUT) == 0


def test_a_second_default_is_refused_and_leaves_the_first_ones_demo(
    default: Instance, environment: dict[str, str]
) -> None:
    command = [*shlex.split(printed_curl_line(default)), "--silent", "--fail", "--max-time", "10"]

    second = run_handfast("serve", "--listen", "127.0.0.1:0", environment=environment)

    assert second.returncode == 1
    assert "is running with this configuration already" in second.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_default_serves_though_nobody_reads_what_it_prints(environment: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "handfast", "serve", "--listen", "127.0.0.1:0"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=writing, env={**os.environ, **environment}
    )
    os.close(writing)
    assert running.stdout is not None
    with running.stdout as log:
        while b"event=listening" not in (line := log.readline()):
            assert line, "it ended"

        stop = run_handfast("stop", environment=environment)

        assert stop.returncode == 0
        assert running.wait(TIMEOUT) == 0


def test_one_line_serves_a_target_with_a_certificate_of_ones_own(
    tmp_path: Path, environment: dict[str, str], certificates: Certificates, backend: Backend
) -> None:
    arguments = shlex.split(
        f"--listen 127.0.0.1:0 --target {backend.target} "
        f"--cert {certificates.chain} --key {certificates.key}"
    )

    with (
        Instance(tmp_path, environment, tuple(arguments)) as running,
        connect(running.port(), trusting(certificates.ca)) as client,
    ):
        assert echoes(client)
        assert client.version() == ssl.TLSVersion.TLSv1_3.name.replace("_", ".")
        client.unwrap().close()


def test_it_can_be_upgraded_and_goes_on_with_its_demo(
    default: Instance, environment: dict[str, str]
) -> None:
    line = shlex.split(printed_curl_line(default))
    before = default.process.pid

    done = run_handfast("upgrade", environment=environment)
    answer = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT, check=False)

    assert done.returncode == 0, done.stderr
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("Hello from a plain HTTP service")
    assert default.wait("upgrade")["pid"] == str(before)
