"""The systems under test: how each is configured, started on one core, checked and stopped.

All get the same certificate and key, the same backend, one core, and a log of every connection
in a file. stunnel otherwise runs with its defaults, which are what stunnel(8) recommends: no
libwrap, TCP_NODELAY on both sides, small thread stacks, one thread per connection.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import load, measure

REPOSITORY: Final = Path(__file__).resolve().parent.parent
START: Final = 20.0
"""Seconds that a system has to begin to serve, and to end after SIGTERM."""
STUNNEL: Final = shutil.which("stunnel4") or shutil.which("stunnel") or "stunnel4"


class StartError(Exception):
    """A system could not be started, or does not run as the comparison needs it."""


@dataclass(frozen=True, slots=True)
class Site:
    """What every system is given. `core` is the only one it may run on."""

    directory: Path
    certificate: Path
    key: Path
    target_port: int
    core: int


@dataclass(frozen=True, slots=True)
class System:
    """A program to measure. The name of its configuration file is added to `command`."""

    name: str
    command: tuple[str, ...]
    configuration: Callable[[Site, int, Path], str]
    """Gives the text of the configuration for a listening port and a log file."""
    version: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Running:
    """A system that serves."""

    name: str
    pid: int
    client: load.Client
    log: Path
    suite: str

    def log_lines(self) -> int:
        """Count what it has logged so far."""
        return self.log.read_bytes().count(b"\n")


def _stunnel_configuration(site: Site, port: int, log: Path) -> str:
    return f"""\
foreground = quiet
pid =
syslog = no
debug = 5
output = {log}
[bench]
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{site.target_port}
cert = {site.certificate}
key = {site.key}
"""


def _stunnel_version() -> str:
    text = subprocess.run([STUNNEL, "-version"], capture_output=True, text=True, check=True).stderr
    kept = [line for line in text.splitlines() if line.startswith(("stunnel ", "Running "))]
    return ", ".join(" ".join(line.split()) for line in kept)


def _handfast_configuration(site: Site, port: int, log: Path) -> str:
    return f"""\
nworkers: 1
logfile: {log}
loglevel: INFO
target-ip: 127.0.0.1
target-port: {site.target_port}
listen-ip: 127.0.0.1
listen-port: {port}
cert-chain: {site.certificate}
servkey: {site.key}
"""


def _kernel_configuration(site: Site, port: int, log: Path) -> str:
    return f"""\
nworkers: 1
logfile: {log}
loglevel: INFO
listeners:
  - listen: 127.0.0.1:{port}
    kernel-tls: on
    target: tcp://127.0.0.1:{site.target_port}
    certificates: [{{chain: {site.certificate}, key: {site.key}}}]
"""


def _handfast_version() -> str:
    program = (
        "import handfast;"
        "from cryptography.hazmat.backends.openssl import backend;"
        "print('handfast', handfast.__version__ + ',',"
        " backend.openssl_version_text())"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
    return result.stdout.strip()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}


_HANDFAST: Final = (sys.executable, "-m", "handfast", "serve", "-c")
SYSTEMS: Final = {
    "stunnel": System("stunnel", (STUNNEL,), _stunnel_configuration, _stunnel_version),
    "handfast": System("handfast", _HANDFAST, _handfast_configuration, _handfast_version),
    "handfast-kernel": System(
        "handfast-kernel", _HANDFAST, _kernel_configuration, _handfast_version
    ),
}
DEFAULT: Final = ("stunnel", "handfast")
"""Those that run on every kernel; handfast-kernel is for one that has TLS."""


def certificate(directory: Path) -> tuple[Path, Path]:
    """Make a self-signed ECDSA P-256 certificate for localhost; give it and its key."""
    certificate, key = directory / "chain.pem", directory / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    to = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*make.split(), *name, *to], check=True, capture_output=True)
    key.chmod(0o600)
    return certificate, key


@contextmanager
def backend(core: int) -> Iterator[int]:
    """Run the backend on `core`; give its port."""
    with subprocess.Popen(
        ["taskset", "-c", str(core), sys.executable, "-m", "bench.backend"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def running(system: System, site: Site) -> Iterator[Running]:
    """Run `system` until the context ends; raises StartError when it does not serve."""
    port = _free_port()
    stem = f"{system.name}-{port}"
    log = site.directory / f"{stem}.log"
    configuration = site.directory / f"{stem}.conf"
    configuration.write_text(system.configuration(site, port, log))
    with ExitStack() as closing:
        output = closing.enter_context((site.directory / f"{stem}.out").open("wb"))
        process = subprocess.Popen(
            ["taskset", "-c", str(site.core), *system.command, str(configuration)],
            cwd=site.directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        closing.callback(_stop, process)
        client = load.client(port, site.certificate)
        suite = _wait_until_it_serves(process, client, site.directory / stem)
        _check_cores(system.name, process.pid, site.core)
        yield Running(system.name, process.pid, client, log, suite)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _wait_until_it_serves(process: subprocess.Popen[bytes], client: load.Client, stem: Path) -> str:
    """Exchange one message through the system; give the cipher suite."""
    deadline = time.monotonic() + START
    failure: Exception | None = None
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with client.connect() as connection:
                load.exchange(connection)
                return str((connection.cipher() or ("unknown",))[0])
        except (OSError, load.LoadError) as error:
            failure = error
            time.sleep(0.05)
    said = b"\n".join(
        path.read_bytes()[-2000:]
        for path in (stem.with_suffix(".out"), stem.with_suffix(".log"))
        if path.exists()
    ).decode(errors="replace")
    raise StartError(
        f"{stem.name} does not serve (exit code {process.poll()}, {failure}); it said:\n{said}"
    )


def _check_cores(name: str, pid: int, core: int) -> None:
    for process in measure.tree(pid):
        allowed = os.sched_getaffinity(process.pid)
        if allowed != {core}:
            raise StartError(f"{name}: process {process.pid} may run on {allowed}, not {core}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole tree: SIGTERM first, SIGKILL for whatever is left after `START` seconds."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(START)
    for left in measure.tree(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(left.pid, signal.SIGKILL)
    process.wait(START)
