"""The proof: a program shows, before it takes the place of another, that it can do the work.

It runs in a process of its own, started with the arguments of the one that serves. It imports all
that there is, reads what it is to inherit, and brings up a whole handfast by the configuration, in
its sandbox, with the files that the configuration names; only its sockets are private, and so is
the target. Then it makes a connection to itself and sends bytes there and back.
"""

from __future__ import annotations

import os
import pkgutil
import signal
import socket
import time
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Final

from msgspec.structs import replace

import handfast
from handfast import __version__
from handfast.config import (
    ClientAuth,
    Config,
    KernelTls,
    Listener,
    Service,
    Target,
    UnixAddress,
)
from handfast.errors import ConfigError, HandfastError
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process.control import ControlServer
from handfast.process.fork import fork
from handfast.process.inheritance import Inheritance
from handfast.process.listening import listen
from handfast.process.messages import Proved, Refused, send
from handfast.process.pidfile import PidFile
from handfast.process.succession import Asked
from handfast.process.supervisor import Plan, Supervisor
from handfast.tls.handshake import HandshakeError
from handfast.tls.openssl import OpenSSLEngine
from handfast.tls.reader import RecordReader
from handfast.tls.session import Role
from handfast.tls.writer import RecordWriter
from handfast.transport.loop import Loop

_PARTS: Final = (
    *("accept", "cli", "config", "handover", "observe", "policy", "process", "relay", "tls"),
    "transport",
)
_SECONDS: Final = 45.0
_MESSAGE: Final = b"there and back " * 2500  # of more than one record
_ROOM: Final = 1 << 17
_OPEN: Final = 0o777


def run(plan: Plan, left: Inheritance, asked: Asked) -> int:
    """Prove this program by a plan; give the exit code, and tell who has asked."""
    try:
        asker = socket.socket(fileno=asked.control)
    except OSError as error:
        raise HandfastError(f"nobody asks for this proof: {error.strerror}") from None
    with asker:
        try:
            _import_all()
            _use_places(plan, left)
            _serve_once(plan, Path(asked.directory))
        except ConfigError as error:
            send(asker, Refused(tuple(map(str, error.problems))))
            return 1
        send(asker, Proved(__version__))
    return 0


def _import_all() -> None:
    """Import every module but those of the applications' library, which has needs of its own."""
    for part in _PARTS:
        package = import_module(f"{handfast.__name__}.{part}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)


def _use_places(plan: Plan, left: Inheritance) -> None:
    """Open and bind what is new: where the program before is already, this one can go on."""
    config = plan.config
    Log.open(config.logfile, Level.FATAL, process_type="master").close()
    held = {each.name for each in (left.pidfile, left.control, left.metrics) if each is not None}
    if config.pidfile and config.pidfile not in held:
        PidFile(config.pidfile).close()
    if str(plan.control) not in held:
        ControlServer(plan.control, Loop(), lambda *_: None).close()
    addresses = [each.address for each in config.listeners]
    if config.metrics is not None and str(config.metrics) not in held:
        addresses.append(config.metrics)
    known = {each.address for each in left.listeners} | {each.name for each in left.spare}
    for address in addresses:
        if str(address) not in known:
            with listen(address):
                if isinstance(address, UnixAddress):
                    Path(address.path).unlink()


def _serve_once(plan: Plan, directory: Path) -> None:
    """Bring handfast up on private sockets, use it once, and let it end. Raises HandfastError."""
    directory.chmod(0o711)  # the resolver goes there as an unprivileged user
    config = _private(plan.config, directory)
    with _target(directory / "target") as target:
        reading, writing = os.pipe()
        pid = fork("proof", lambda: _supervise(plan, config, directory, writing), {2, writing})
        os.close(writing)
        try:
            _await(reading)
            if config.listeners[0].certificates:
                _use(directory / "0", target)
        finally:
            os.close(reading)
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def _private(config: Config, directory: Path) -> Config:
    """Give the configuration with all that it does in public replaced.

    The first listener is that to be used: one with a certificate, if there is any.
    """
    order = sorted(config.listeners, key=lambda each: not each.certificates)
    listeners = tuple(
        _private_listener(each, number, directory) for number, each in enumerate(order)
    )
    return replace(
        config,
        nworkers=1,
        listeners=listeners,
        control=None,
        pidfile=None,
        metrics=None,
        watch=False,
        timeouts=replace(config.timeouts, drain=0.0),
    )


def _private_listener(listener: Listener, number: int, directory: Path) -> Listener:
    changed = replace(
        listener,
        address=UnixAddress(path=str(directory / str(number))),
        kernel_tls=KernelTls(),
        accept_proxy=(),
    )
    if number:
        return changed
    target = Target(address=UnixAddress(path=str(directory / "target")))
    return replace(
        changed, service=Service(targets=(target,)), routes=(), client_auth=ClientAuth(), alpn=()
    )


def _target(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(_SECONDS)
    sock.bind(str(path))
    path.chmod(_OPEN)
    sock.listen(1)
    return sock


def _supervise(plan: Plan, config: Config, directory: Path, writing: int) -> int:
    """Be the supervisor; say `ok` when everything serves, or else why not."""
    log = Log(os.open(os.devnull, os.O_WRONLY), Level.ERROR, process_type="master")
    try:
        Supervisor(
            Plan(
                config=config,
                source=plan.source,
                control=directory / "control",
                announce=lambda _: _say(writing, b"ok"),
                is_proof=True,
            ),
            log,
        ).run()
    except HandfastError as error:
        _say(writing, str(error).encode())
    return 0


def _say(writing: int, text: bytes) -> None:
    os.write(writing, text)


def _await(reading: int) -> None:
    said = os.read(reading, _ROOM)
    if said != b"ok":
        text = said.decode(errors="replace")
        raise HandfastError(text or "its processes do not come up")


def _use(path: Path, target: socket.socket) -> None:
    """Connect to the listener at `path`, and send bytes to the target and back."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
        sock.settimeout(_SECONDS)
        try:
            sock.connect(str(path))
            reader, writer = _shake_hands(sock)
            buffer, out = memoryview(bytearray(_ROOM)), memoryview(bytearray(_ROOM))
            buffer[: len(_MESSAGE)] = _MESSAGE
            sock.sendall(out[: writer.seal(buffer, len(_MESSAGE), out)])
            with target.accept()[0] as other:
                other.settimeout(_SECONDS)
                _echo(other)
                received = _receive(sock, reader, buffer, out)
        except (OSError, HandshakeError) as error:
            raise HandfastError(f"a connection to itself failed: {error}") from None
    if received != _MESSAGE:
        raise HandfastError("a connection to itself gave back other bytes than were sent")


def _echo(sock: socket.socket) -> None:
    left = len(_MESSAGE)
    while left and (piece := sock.recv(left)):
        sock.sendall(piece)
        left -= len(piece)


def _shake_hands(sock: socket.socket) -> tuple[RecordReader, RecordWriter]:
    handshake = OpenSSLEngine(role=Role.CLIENT).start("", 0, server_name="localhost")
    sock.sendall(handshake.feed(b""))
    while not handshake.done:
        data = sock.recv(_ROOM)
        if not data:
            raise HandfastError("a connection to itself was closed during the handshake")
        sock.sendall(handshake.feed(data))
    session = handshake.session()
    return RecordReader(session), RecordWriter(session)


def _receive(
    sock: socket.socket, reader: RecordReader, buffer: memoryview, out: memoryview
) -> bytes:
    received = b""
    end = time.monotonic() + _SECONDS
    while len(received) < len(_MESSAGE) and time.monotonic() < end:
        start = reader.restore(buffer)
        count = sock.recv_into(buffer[start:])
        if not count:
            break
        received += bytes(out[: reader.open(buffer, start + count, out)])
    return received
