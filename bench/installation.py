"""A handfast to count in, of real processes: one acceptor and one relay, with a backend."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import counting, load, measure, steps, systems

HOMES: Final = {"user space": "off", "kernel TLS": "on"}
"""Where sessions live, and how `kernel-tls` is for that."""
HANDFAST: Final = ("-m", "handfast")
LOG: Final = "handfast.log"
_START: Final = 20.0


class InstallationError(Exception):
    """handfast does not serve."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A handfast that serves, with one acceptor and one relay, and a backend."""

    client: load.Client
    roles: dict[str, int]
    """The processes to count in."""
    backend: int

    def settle(self) -> None:
        """Wait until nobody has anything left to do."""
        steps.settle([*self.roles.values(), self.backend])

    def connection(self) -> steps.Connection:
        """Open a connection; all is done that follows a handshake."""
        return steps.Connection(self.client, self.settle)


@contextmanager
def installation(
    directory: Path, home: str, program: tuple[str, ...] = HANDFAST, memory: int = -1
) -> Iterator[Installation]:
    """Start handfast as `python PROGRAM serve -c FILE`, with the descriptor `memory` open."""
    with ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        directory.chmod(0o755)
        backend, target = closing.enter_context(_backend())
        certificate, key = systems.certificate(directory)
        port = _free_port()
        configuration = directory / "handfast.yaml"
        configuration.write_text(
            f"nworkers: 1\nlogfile: {directory / LOG}\nloglevel: INFO\n"
            f"control: {directory}/control.sock\nlisteners:\n  - listen: 127.0.0.1:{port}\n"
            f"    kernel-tls: {HOMES[home]}\n    target: tcp://127.0.0.1:{target}\n"
            f"    certificates: [{{chain: {certificate}, key: {key}}}]\n"
        )
        output = closing.enter_context((directory / "output").open("w"))
        process = subprocess.Popen(
            [sys.executable, *program, "serve", "-c", str(configuration)],
            env=_environment(),
            pass_fds=[memory] if memory >= 0 else [],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        closing.callback(_end, process)
        client = load.client(port, certificate)
        _wait_until_it_serves(process, client, directory / "output")
        yield Installation(client, _roles(process.pid), backend)


def _environment() -> dict[str, str]:
    """Give ours, but without what has Python measure coverage in all that is started."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return kept | {"PYTHONPATH": f"{systems.REPOSITORY}/src:{systems.REPOSITORY}"}


@contextmanager
def _backend() -> Iterator[tuple[int, int]]:
    """Run a backend; give its PID and its port."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.backend"],
        cwd=systems.REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _wait_until_it_serves(
    process: subprocess.Popen[bytes], client: load.Client, output: Path
) -> None:
    deadline = time.monotonic() + _START
    while process.poll() is None:
        try:
            with client.connect() as connection:
                return load.exchange(connection)
        except (OSError, load.LoadError) as error:
            if time.monotonic() > deadline:
                raise InstallationError(f"handfast does not serve: {error}") from error
            time.sleep(0.05)
    said = output.read_text()[-2000:]
    raise InstallationError(f"handfast ended with {process.returncode}; it said:\n{said}")


def _roles(pid: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in measure.tree(pid):
        title = Path(f"/proc/{each.pid}/cmdline").read_bytes().split()
        found |= {role: each.pid for role in counting.ROLES if role.encode() in title[1:2]}
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all of it at once: time may stand still in there, so that nothing drains."""
    process.kill()
    process.wait(_START)
