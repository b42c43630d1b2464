"""What each kind of child runs, from the descriptors that it was left with."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from handfast.accept.acceptor import Acceptor, Door
from handfast.config import Config, UnixAddress
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process import worker
from handfast.process.demo import serve
from handfast.process.template import Template
from handfast.relay.relay import Relay, Service
from handfast.tls.openssl import OpenSSLEngine
from handfast.transport.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from handfast.process.child import Child
    from handfast.process.listening import Bound

ACCEPTOR_NICE = 5
"""Added to the acceptors' niceness: a flood of handshakes burns their time, not the relays'."""


def _worker_log(log: Log, config: Config, worker_id: str) -> Log:
    return Log(log.fileno(), Level[config.loglevel], process_type="worker", worker_id=worker_id)


def relay(
    child: Child,
    control: socket.socket,
    receiver: socket.socket,
    bound: tuple[Bound, ...],
    config: Config,
    log: Log,
) -> int:
    """Be a relay."""
    own = _worker_log(log, config, child.worker_id)
    services = tuple(
        Service(each.ip, each.port, each.sock.family, each.listener.target) for each in bound
    )

    def start(loop: Loop, ended: Callable[[], None]) -> Relay:
        return Relay(loop, receiver, services, config.timeouts, own, ended)

    return worker.run(control, own, start)


def template(
    control: socket.socket,
    senders: tuple[socket.socket, ...],
    bound: tuple[Bound, ...],
    config: Config,
    log: Log,
    keep: set[int],
) -> int:
    """Be the template, whose children are the acceptors."""

    def accept(number: int, own_control: socket.socket, engines: tuple[OpenSSLEngine, ...]) -> int:
        own = _worker_log(log, config, f"acceptor-{number}")
        doors = tuple(
            Door(index, each.sock, engine, each.ip, each.port)
            for index, (each, engine) in enumerate(zip(bound, engines, strict=True))
        )
        os.nice(ACCEPTOR_NICE)

        def start(loop: Loop, ended: Callable[[], None]) -> Acceptor:
            return Acceptor(loop, doors, senders, config.timeouts.handshake, own, ended)

        return worker.run(own_control, own, start)

    own = Log(log.fileno(), Level[config.loglevel], process_type="master")
    listening = tuple(each.sock for each in bound)
    return Template(control, {*keep, log.fileno()}, listening, accept).run(config, own)


def demo(control: socket.socket, listening: socket.socket) -> int:
    """Be the demo service."""
    return serve(control, listening)


def unbind(bound: Bound) -> None:
    """Close a listening socket of the supervisor's; a Unix socket's name goes with it."""
    if bound.sock.fileno() >= 0:
        bound.sock.close()
        address = bound.listener.address
        if isinstance(address, UnixAddress):
            Path(address.path).unlink(missing_ok=True)
