"""`handfast serve`."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shlex
import socket
import sys
from contextlib import ExitStack, closing
from pathlib import Path

from msgspec.structs import replace

from handfast import config
from handfast.cli import FAILED, WRONG_USAGE
from handfast.cli.loading import content_of, load, located, usable_cores
from handfast.errors import ConfigError, HandfastError
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process.commands import control_path, state_directory
from handfast.process.daemon import Launch, daemonize, require_logfile
from handfast.process.development import DevelopmentCertificate, files_in, prepare
from handfast.process.fork import fork
from handfast.process.inheritance import Inheritance, claim, keep_to_ourselves, read
from handfast.process.listening import Bound
from handfast.process.pidfile import PidFile
from handfast.process.proof import run as prove
from handfast.process.source import Source
from handfast.process.succession import RETURNED, can_go_back, claim_proof, go_back
from handfast.process.supervisor import Plan, Supervisor
from handfast.process.systemd import ServiceManager
from handfast.process.upgrades import Inherited

_DEMO_LISTEN = "127.0.0.1:8443"


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    left, proof = claim(os.environ), claim_proof(os.environ)
    inheritance = read(left) if left >= 0 else None
    if inheritance is not None and proof is None:
        return _go_on(options, Inherited(inheritance, left, os.environ.pop(RETURNED, "")))
    # A proof has no descriptor of the program that it is to follow.
    plan = _plan(options, replace(inheritance, demo=-1) if inheritance else None)
    if inheritance is not None and proof is not None:
        return prove(plan, inheritance, proof)
    if not options.daemon:
        return _serve(plan)
    if options.config is None:
        raise ConfigError("a daemon needs a configuration that can be read again: give -c FILE")
    require_logfile(plan.config.logfile)
    return _serve_detached(plan, daemonize())


def _plan(options: argparse.Namespace, inheritance: Inheritance | None) -> Plan:
    """Read what is to be run; a program that takes another's place has that one's reading of it."""
    single = [options.listen, options.target, options.cert, options.key]
    if options.config is not None and any(single):
        raise ConfigError("give either -c FILE, or --listen, --target, --cert and --key")
    if options.config is not None:
        content = inheritance.configuration if inheritance else None
        if not options.daemon:
            return _file_plan(options.config, content)
        # A daemon has another working directory, so that it needs names that hold anywhere.
        path = os.path.abspath(options.config)  # noqa: PTH100  text in, text out
        return replace(_file_plan(path, content), arguments=("serve", "--daemon", "-c", path))
    if options.target or options.cert or options.key:
        return _option_plan(options)
    return _demo_plan(options.listen or _DEMO_LISTEN, inheritance)


def _go_on(options: argparse.Namespace, inherited: Inherited) -> int:
    """Take the place of the program before, in its process."""
    keep_to_ourselves(inherited.inheritance)
    os.environ.update(inherited.inheritance.environment)
    with ExitStack() as stack:
        try:
            plan = replace(
                _plan(options, inherited.inheritance), announce=_quietly, inherited=inherited
            )
            supervisor = _prepare(plan, stack)
        except HandfastError as error:
            if can_go_back(inherited.inheritance, inherited.returned):
                raise go_back(inherited.inheritance, inherited.left, str(error)) from error
            raise
        return _run(supervisor, plan)


def _serve_detached(plan: Plan, launch: Launch) -> int:
    """Serve as a daemon; the command that started it hears how the start went."""
    try:
        return _serve(replace(plan, announce=lambda _: launch.succeeded()))
    except ConfigError as error:
        launch.failed("\n".join(f"handfast: {each}" for each in error.problems), WRONG_USAGE)
    except HandfastError as error:
        launch.failed(f"handfast: {error}", FAILED)
    return FAILED


def _serve(plan: Plan) -> int:
    with ExitStack() as stack:
        return _run(_prepare(plan, stack), plan)


def _prepare(plan: Plan, stack: ExitStack) -> Supervisor:
    """Make what serves; what belongs to it is closed with the stack."""
    _raise_descriptor_limit()
    if plan.demo is not None:
        stack.enter_context(plan.demo)
    pidfile = None
    if plan.config.pidfile:
        pidfile = stack.enter_context(closing(_pidfile(plan.config.pidfile, plan.inherited)))
    log = Log.open(plan.config.logfile, Level[plan.config.loglevel], process_type="master")
    manager = ServiceManager(os.environ)
    try:
        return Supervisor(replace(plan, manager=manager, pidfile=pidfile), log)
    except ConfigError as error:
        raise plan.source.locate(error) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise HandfastError(f"cannot start: {reason}; raise LimitNOFILE, or `ulimit -n`") from error


def _run(supervisor: Supervisor, plan: Plan) -> int:
    try:
        supervisor.run()
    except ConfigError as error:
        raise plan.source.locate(error) from None
    return 0


def _pidfile(path: str, inherited: Inherited | None) -> PidFile:
    before = inherited.inheritance.pidfile if inherited else None
    if before is not None and before.name == path:
        return PidFile(path, before.descriptor)
    return PidFile(path)


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system does: a connection takes two in its relay."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _quietly(_: object) -> None:
    """Announce nothing: the log says that handfast serves."""


def _file_plan(path: str, content: bytes | None) -> Plan:
    parsed = load(path, content)
    control = Path(parsed.control) if parsed.control else control_path(path)
    source = Source(
        name=path,
        load=lambda: load(path),
        locate=lambda error: located(path, error),
        file=path,
        content=lambda: content_of(path),
    )
    return Plan(parsed, source, control, _quietly, tuple(sys.argv[1:]))


def _option_plan(options: argparse.Namespace) -> Plan:
    parsed = config.from_options(
        options.listen, options.target, options.cert, options.key, cores=usable_cores()
    )
    source = Source("command line", lambda: parsed)
    return Plan(parsed, source, control_path(None), _quietly, tuple(sys.argv[1:]))


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


def _demo_plan(listen: str, inheritance: Inheritance | None) -> Plan:
    files = _development_certificate(state_directory() / "development")
    before = inheritance.demo if inheritance else -1
    if before >= 0:
        demo = socket.socket(fileno=before)
    else:
        demo = socket.create_server(("127.0.0.1", 0))
        demo.setblocking(False)
    target = f"tcp://127.0.0.1:{demo.getsockname()[1]}"
    parsed = config.from_options(
        listen, target, str(files.chain), str(files.key), cores=usable_cores()
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

    source = Source("the embedded default", lambda: parsed)
    return Plan(parsed, source, control_path(None), announce, tuple(sys.argv[1:]), demo)
