"""The systems under test: how each is configured and tuned, and what is done to it by a signal.

All get the same certificates and key files, the same backend, one core, and a log of every
connection in a file. Session tickets are on where they are by default, which is everywhere.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.certificates import Certificate, issue

REPOSITORY: Final = Path(__file__).resolve().parent.parent


def program(name: str) -> str:
    """Give the path of a program, also where /usr/sbin is not on PATH.

    The path matters: nginx runs itself again by its first argument.
    """
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or name


NGINX: Final = program("nginx")
HITCH: Final = program("hitch")
HAPROXY: Final = program("haproxy")
STUNNEL: Final = program("stunnel4")
_HANDFAST: Final = (sys.executable, "-m", "handfast")


@dataclass(frozen=True, slots=True)
class Listener:
    """A port of loopback, and the certificates to choose from by name; the first is the default."""

    port: int
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration is to say. `directory` is the system's own, for its files."""

    directory: Path
    listeners: tuple[Listener, ...]
    target: int
    workers: int
    descriptors: int

    @property
    def configuration(self) -> Path:
        """The file of the configuration."""
        return self.directory / "configuration"

    @property
    def log(self) -> Path:
        """The file of the log."""
        return self.directory / "log"

    @property
    def pidfile(self) -> Path:
        """The file with the PID, of those that need one."""
        return self.directory / "pid"


@dataclass(frozen=True, slots=True)
class System:
    """A program to measure.

    `command` is followed by the name of the configuration file. `one_worker` and `one_certificate`
    say why it has no figures for more. `upgrade` replaces the program by what is installed now;
    with `keeps_pid` the first process goes on as the new program. A `daemon` writes its PID file
    and goes into the background, without which nginx ignores the signal for an upgrade.
    """

    name: str
    command: tuple[str, ...]
    render: Callable[[Plan], str]
    version: Callable[[], str]
    tuning: str
    one_worker: str = ""
    one_certificate: str = ""
    upgrade: Callable[[Plan, int], None] | None = None
    keeps_pid: bool = True
    daemon: bool = False
    reload: signal.Signals = signal.SIGHUP


def environment() -> dict[str, str]:
    """What the processes are started with."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}


def certificate(directory: Path) -> tuple[Path, Path]:
    """Make a self-signed ECDSA P-256 certificate for localhost; give its file and the key's."""
    made = issue(directory)
    return made.chain, made.key


def _printed(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    return done.stdout + done.stderr


def _first(*command: str) -> Callable[[], str]:
    def version() -> str:
        return _printed(*command).splitlines()[0].strip()

    return version


# --- handfast


def _handfast(kernel_tls: str) -> Callable[[Plan], str]:
    def render(plan: Plan) -> str:
        listeners = "".join(
            f"  - listen: 127.0.0.1:{each.port}\n"
            f"    kernel-tls: {kernel_tls}\n"
            f"    target: tcp://127.0.0.1:{plan.target}\n"
            f"    certificates:\n"
            + "".join(f"      - {{chain: {c.chain}, key: {c.key}}}\n" for c in each.certificates)
            for each in plan.listeners
        )
        return (
            f"nworkers: {plan.workers}\nlogfile: {plan.log}\nloglevel: INFO\n"
            f"control: {plan.directory}/control\nlisteners:\n{listeners}"
        )

    return render


def _handfast_version() -> str:
    program = (
        "import handfast;"
        "from cryptography.hazmat.backends.openssl import backend;"
        "print('handfast', handfast.__version__ + ', own', backend.openssl_version_text())"
    )
    return _printed(sys.executable, "-c", program).strip()


def _handfast_upgrade(plan: Plan, _pid: int) -> None:
    _printed(*_HANDFAST, "upgrade", "-c", str(plan.configuration))


# --- nginx


def _nginx(plan: Plan) -> str:
    servers = "".join(
        f"  server {{ listen 127.0.0.1:{each.port} ssl backlog=4096;\n"
        f"    ssl_certificate {each.certificates[0].chain};\n"
        f"    ssl_certificate_key {each.certificates[0].key};\n"
        f"    proxy_pass 127.0.0.1:{plan.target}; proxy_timeout 1h; }}\n"
        for each in plan.listeners
    )
    return f"""\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
pid {plan.pidfile};
error_log {plan.directory}/errors;
worker_processes {plan.workers};
worker_rlimit_nofile {plan.descriptors};
events {{ worker_connections {plan.descriptors}; }}
stream {{
  log_format each '$remote_addr [$time_local] $status $bytes_sent $bytes_received $session_time'
                  ' $ssl_protocol $ssl_cipher $ssl_session_reused';
  access_log {plan.log} each;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_cache shared:bench:10m;
{servers}}}
"""


def _nginx_upgrade(plan: Plan, pid: int) -> None:
    """nginx.org, "Controlling nginx": USR2, and when the new one serves, QUIT to the old one."""
    from bench.running import wait_for  # noqa: PLC0415 - which imports this module

    new = plan.pidfile
    os.kill(pid, signal.SIGUSR2)
    wait_for(
        lambda: new.exists() and new.read_text().strip() not in {"", str(pid)}, "nginx's new master"
    )
    os.kill(pid, signal.SIGWINCH)
    os.kill(pid, signal.SIGQUIT)


# --- hitch


def _hitch(plan: Plan) -> str:
    frontends = "".join(
        f'frontend = {{\n  host = "127.0.0.1"\n  port = "{each.port}"\n'
        + "".join(f'  pem-file = "{c.both}"\n' for c in each.certificates)
        + "}\n"
        for each in plan.listeners
    )
    return f"""\
{frontends}backend = "[127.0.0.1]:{plan.target}"
workers = {plan.workers}
backlog = 4096
tls-protos = TLSv1.2 TLSv1.3
log-level = 2
log-filename = "{plan.log}"
user = "nobody"
daemon = off
"""


# --- HAProxy


def _haproxy(plan: Plan) -> str:
    listeners = ""
    for number, each in enumerate(plan.listeners):
        certificates = plan.directory / f"crt-list-{number}"
        certificates.write_text("".join(f"{c.both}\n" for c in each.certificates))
        listeners += (
            f"listen bench-{each.port}\n"
            f"  bind 127.0.0.1:{each.port} ssl crt-list {certificates} backlog 4096\n"
            f"  server backend 127.0.0.1:{plan.target}\n"
        )
    return f"""\
global
  nbthread {plan.workers}
  log stdout format raw local0
  ssl-default-bind-options ssl-min-ver TLSv1.2
  maxconn {plan.descriptors // 2 - 50}
defaults
  mode tcp
  log global
  option tcplog
  timeout connect 5s
  timeout client 1h
  timeout server 1h
{listeners}"""


def _haproxy_upgrade(_plan: Plan, pid: int) -> None:
    """Management guide, 4: in master-worker mode USR2 runs the program again."""
    os.kill(pid, signal.SIGUSR2)


# --- stunnel


def _stunnel(plan: Plan) -> str:
    services = "".join(
        f"[bench-{each.port}]\naccept = 127.0.0.1:{each.port}\nconnect = 127.0.0.1:{plan.target}\n"
        f"cert = {each.certificates[0].chain}\nkey = {each.certificates[0].key}\n"
        for each in plan.listeners
    )
    return f"""\
foreground = quiet
pid =
syslog = no
debug = 5
output = {plan.log}
{services}"""


def _stunnel_version() -> str:
    kept = [
        " ".join(line.split())
        for line in _printed(STUNNEL, "-version").splitlines()
        if line.startswith(("stunnel ", "Running "))
    ]
    return ", ".join(kept)


SYSTEMS: Final = {
    each.name: each
    for each in (
        System(
            "handfast",
            (*_HANDFAST, "serve", "-c"),
            _handfast("off"),
            _handfast_version,
            "defaults: one acceptor and one relay for a worker; confined, user nobody",
            upgrade=_handfast_upgrade,
        ),
        System(
            "handfast-kernel",
            (*_HANDFAST, "serve", "-c"),
            _handfast("on"),
            _handfast_version,
            "as handfast, and sessions move into the kernel",
            upgrade=_handfast_upgrade,
        ),
        System(
            "nginx",
            (NGINX, "-c"),
            _nginx,
            _first(NGINX, "-v"),
            "stream with ssl; ssl_session_cache shared, as ngx_stream_ssl_module's page advises;"
            " worker_connections for all connections; one worker",
            one_certificate="nginx 1.22 chooses by name only by reading the file at each handshake",
            upgrade=_nginx_upgrade,
            keeps_pid=False,
            daemon=True,
        ),
        System(
            "hitch",
            (HITCH, "--config="),
            _hitch,
            _first(HITCH, "-V"),
            "one worker for a core, as hitch.conf(5) advises; backlog raised",
            one_worker="hitch binds each of its workers to another core itself",
        ),
        System(
            "haproxy",
            (HAPROXY, "-W", "-f"),
            _haproxy,
            _first(HAPROXY, "-v"),
            "mode tcp, master-worker, one thread for a core; tcplog; maxconn for all connections",
            upgrade=_haproxy_upgrade,
            reload=signal.SIGUSR2,
        ),
        System(
            "stunnel",
            (STUNNEL,),
            _stunnel,
            _stunnel_version,
            "defaults, which stunnel(8) recommends: no libwrap, TCP_NODELAY, a thread each",
            one_worker="stunnel is one process, with a thread for each connection",
            one_certificate="stunnel has a service for each name, not a list of certificates",
        ),
    )
}
DEFAULT: Final = ("handfast", "nginx", "hitch", "haproxy", "stunnel")
"""Those that run on every kernel; handfast-kernel is for one that has TLS."""
