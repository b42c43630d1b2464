"""`handfast serve`."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shlex
import socket
import sys
from contextlib import nullcontext
from pathlib import Path

from handfast import config
from handfast.cli.loading import load, naming, usable_cores
from handfast.config import Config
from handfast.errors import ConfigError, HandfastError
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process.commands import control_path, state_directory
from handfast.process.development import DevelopmentCertificate, files_in, prepare
from handfast.process.fork import fork
from handfast.process.listening import Bound, is_stale
from handfast.process.supervisor import Plan, Supervisor

_DEMO_LISTEN = "127.0.0.1:8443"


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    single = [options.listen, options.target, options.cert, options.key]
    if options.config is not None and any(single):
        raise ConfigError("give either -c FILE, or --listen, --target, --cert and --key")
    if options.config is not None:
        plan = _file_plan(options.config)
    elif options.target or options.cert or options.key:
        plan = _option_plan(options)
    else:
        plan = _demo_plan(options.listen or _DEMO_LISTEN)
    _raise_descriptor_limit()
    log = _open_log(plan.config)
    try:
        with naming(options.config) if options.config is not None else nullcontext():
            Supervisor(plan, log).run()
    finally:
        if plan.demo is not None:
            Path(plan.demo.getsockname()).unlink(missing_ok=True)
    return 0


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system does: a connection takes two in its relay."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_log(parsed: Config) -> Log:
    path = Path(parsed.logfile) if parsed.logfile else None
    return Log.open(path, Level[parsed.loglevel], process_type="master")


def _file_plan(path: str) -> Plan:
    parsed = load(path)
    control = Path(parsed.control) if parsed.control else control_path(path)
    return Plan(parsed, path, control, lambda _: None)


def _option_plan(options: argparse.Namespace) -> Plan:
    parsed = config.from_options(
        options.listen, options.target, options.cert, options.key, cores=usable_cores()
    )
    return Plan(parsed, "command line", control_path(None), lambda _: None)


def _development_certificate(directory: Path) -> DevelopmentCertificate:
    """Have a child make the files: relays are forked from this process, which must see no key."""

    def make() -> int:
        try:
            prepare(directory)
        except HandfastError as error:
            sys.stderr.write(f"handfast: {error}\n")
            return 1
        return 0

    if os.waitpid(fork("certificates", make, ()), 0)[1]:
        raise HandfastError("the demo needs its development certificate")
    return files_in(directory)


def _demo_plan(listen: str) -> Plan:
    files = _development_certificate(state_directory() / "development")
    control = control_path(None)
    demo_path = control.with_name("demo.sock")
    parsed = config.from_options(
        listen, f"unix:{demo_path}", str(files.chain), str(files.key), cores=usable_cores()
    )

    def announce(bound: tuple[Bound, ...]) -> None:
        address = bound[0].text
        port = address.rpartition(":")[2]
        text = (
            f"\nhandfast serves a demo on {address}. Try it from another terminal:\n\n"
            f"    curl --cacert {shlex.quote(str(files.ca))} https://localhost:{port}/\n\n"
            "Stop it with Ctrl-C.\n\n"
        )
        # That nobody reads it (a pipe without a reader; None, when closed) is no reason to end.
        with contextlib.suppress(OSError, AttributeError):
            sys.stderr.write(text)
            sys.stderr.flush()

    return Plan(parsed, "the embedded default", control, announce, _demo_socket(demo_path))


def _demo_socket(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    mask = os.umask(0o177)
    try:
        if is_stale(str(path)):
            path.unlink()
        sock.bind(str(path))
        sock.listen(64)
    except OSError as error:
        sock.close()
        raise HandfastError(
            f"the demo cannot listen on {path}: {error.strerror or error}; "
            "handfast may be running already: stop it with `handfast stop`"
        ) from None
    finally:
        os.umask(mask)
    return sock
