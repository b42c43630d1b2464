"""Starting a system on its core, waiting until it serves, and ending it with all its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench import load, measure
from bench.certificates import Certificate
from bench.systems import NGINX, Listener, Plan, System, environment

PATIENCE: Final = 30.0
"""Seconds that a system has to begin to serve, and to end after SIGTERM."""


class StartError(Exception):
    """A system could not be started, or does not run as the comparison needs it."""


@dataclass(frozen=True, slots=True)
class Site:
    """What every system is given. `core` is the only one it may run on."""

    directory: Path
    ecdsa: Certificate
    rsa: Certificate
    target: int
    core: int
    descriptors: int

    @property
    def connections(self) -> int:
        """How many connections a process can forward, with a descriptor for either side.

        Of all of its descriptors, stunnel keeps 3 in 128 for itself, and handfast 5 in 100.
        """
        return 23 * self.descriptors // 50

    def presenting(self, certificate: Certificate) -> Site:
        """Give the same with another ECDSA certificate."""
        return replace(self, ecdsa=certificate)


@dataclass(frozen=True, slots=True)
class Running:
    """A system that serves: its first process, and the port for each kind of certificate."""

    system: System
    plan: Plan
    pid: int
    ecdsa: load.Client
    rsa_port: int
    seconds: float
    """From the start of the process to the answer to the first request."""

    @property
    def name(self) -> str:
        """The system's name."""
        return self.system.name

    def log_lines(self) -> int:
        """Count what it has logged so far."""
        return self.plan.log.read_bytes().count(b"\n")


def wait_for(condition: Callable[[], object], what: str, pause: float = 0.05) -> None:
    """Look again and again; raises StartError after `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise StartError(f"not within {PATIENCE:.0f} s: {what}")
        time.sleep(pause)


@contextmanager
def start(
    system: System,
    site: Site,
    workers: int = 1,
    certificates: tuple[Certificate, ...] = (),
) -> Iterator[Running]:
    """Run `system` until the context ends; raises StartError when it does not serve.

    `certificates` are further ones for the first port.
    """
    ports = _free_ports(2)
    directory = site.directory / f"{system.name}-{ports[0]}"
    directory.mkdir()
    plan = Plan(
        directory,
        (Listener(ports[0], (site.ecdsa, *certificates)), Listener(ports[1], (site.rsa,))),
        site.target,
        workers,
        site.descriptors,
    )
    plan.configuration.write_text(system.render(plan))
    *command, last = system.command
    command += (
        [last + str(plan.configuration)] if last.endswith("=") else [last, str(plan.configuration)]
    )
    with ExitStack() as closing:
        output = closing.enter_context(plan.log.open("ab"))
        began = time.monotonic()
        process = subprocess.Popen(
            ["taskset", "-c", str(site.core), *command],
            cwd=directory,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        closing.callback(_stop, process)
        pid = process.pid
        if system.daemon and process.wait(PATIENCE) == 0:
            wait_for(plan.pidfile.exists, "the PID file", pause=0.001)
            pid = int(plan.pidfile.read_text())
            closing.callback(_end, pid)
        client = load.client(ports[0], site.ecdsa.chain, load.HTTP)
        _wait_until_it_serves(system, process, client, plan)
        seconds = time.monotonic() - began
        _check_cores(system.name, pid, site.core)
        yield Running(system, plan, pid, client, ports[1], seconds)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as closing:
        taken = [
            closing.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [int(each.getsockname()[1]) for each in taken]


def _wait_until_it_serves(
    system: System, process: subprocess.Popen[bytes], client: load.Client, plan: Plan
) -> None:
    failure: Exception | None = None

    def serves() -> bool:
        nonlocal failure
        if process.poll():
            return True
        try:
            with client.connect() as connection:
                client.exchange(connection)
        except (OSError, load.LoadError) as error:
            failure = error
            return False
        return True

    with contextlib.suppress(StartError):
        wait_for(serves, "the first answer", pause=0.002)
        if not process.poll():
            return
    said = plan.log.read_bytes()[-2000:].decode(errors="replace")
    raise StartError(
        f"{system.name} does not serve (exit code {process.poll()}, {failure}); it said:\n{said}"
    )


def _check_cores(name: str, pid: int, core: int) -> None:
    for process in measure.tree(pid):
        allowed = os.sched_getaffinity(process.pid)
        if allowed != {core}:
            raise StartError(f"{name}: process {process.pid} may run on {allowed}, not {core}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that we have started, and all that belong to it."""
    _end(process.pid)
    process.wait(PATIENCE)


def _end(pid: int) -> None:
    """End a whole tree: SIGTERM to those on top, then to whom they leave, SIGKILL in the end."""
    told: set[int] = set()

    def gone() -> bool:
        tree = [each for each in measure.tree(pid) if each.state != "Z"]
        ours = {each.pid for each in tree}
        for each in tree:
            if each.parent not in ours and each.pid not in told:
                _kill(each.pid, signal.SIGTERM)
                told.add(each.pid)
        return not tree

    with contextlib.suppress(StartError):
        wait_for(gone, "the end", pause=0.01)
    for left in measure.tree(pid):
        if left.state != "Z":
            _kill(left.pid, signal.SIGKILL)


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


_BACKEND: Final = """\
daemon off;
pid {directory}/pid;
error_log {directory}/errors;
worker_processes 1;
worker_rlimit_nofile {descriptors};
events {{ worker_connections {descriptors}; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  sendfile on;
  tcp_nopush on;
  client_max_body_size 0;
  client_header_timeout 1h;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ return 200 "{body}"; }}
    location = /bulk {{ alias {bulk}; }}
    location /sink/ {{
      dav_methods PUT;
      root {directory};
      client_body_temp_path {directory}/bodies;
      client_body_buffer_size 256k;
    }}
  }}
}}
"""
BULK: Final = 1 << 30
"""Bytes of the file that bulk downloads are a range of, and bulk uploads send."""


@contextmanager
def target(directory: Path, core: int, descriptors: int) -> Iterator[int]:
    """Run the HTTP server behind every system on `core`; give its port.

    It answers from memory, and `/bulk` from a sparse file. What is put to `/sink/` is written to a
    file, since nginx reads a body that it throws away in pieces of 4 KB, which would choke a proxy.
    """
    (port,) = _free_ports(1)
    own = directory / "backend"
    own.mkdir()
    for name in ("sink", "bodies"):
        (own / name).mkdir()
        (own / name).chmod(0o777)  # its worker leaves root behind
    bulk = directory / "bulk"
    with bulk.open("wb") as file:
        file.truncate(BULK)
    configuration = own / "configuration"
    configuration.write_text(
        _BACKEND.format(
            directory=own, descriptors=descriptors, port=port, body=load.BODY, bulk=bulk
        )
    )
    with subprocess.Popen(
        ["taskset", "-c", str(core), NGINX, "-c", str(configuration)], start_new_session=True
    ) as process:
        try:
            wait_for(lambda: _accepts(port), "the backend")
            yield port
        finally:
            _stop(process)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True
