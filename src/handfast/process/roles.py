"""What each kind of child runs, from the descriptors that it was left with."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import TYPE_CHECKING

import msgspec

from handfast.accept.acceptor import Acceptor, Door, Terms
from handfast.config import Config
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.policy.clients import Clients
from handfast.policy.routes import Routes
from handfast.process import resolving, worker
from handfast.process.isolation import Identity, Role, enter
from handfast.process.kernel_tls import kernel_support
from handfast.process.messages import (
    Configure,
    Configured,
    Drain,
    End,
    GiveAway,
    GivenAway,
    Reopen,
    Take,
    ToChild,
    receive_in_child,
    send,
)
from handfast.process.plans import make_plan
from handfast.process.sealed import unseal
from handfast.process.template import Engines, Template, Work
from handfast.relay.plan import ListenerPlan, Plan, decode
from handfast.relay.relay import Relay
from handfast.relay.resolver import Resolver
from handfast.transport.census import Census, Column

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from handfast.config import TargetAddress
    from handfast.process.child import Child
    from handfast.process.credentials import Files
    from handfast.process.listening import Bound
    from handfast.tls.openssl import OpenSSLEngine
    from handfast.transport.loop import Loop

ACCEPTOR_NICE = 5
"""Added to the acceptors' niceness: a flood of handshakes burns their time, not the relays'."""


class Common(msgspec.Struct, frozen=True, eq=False):
    """What every child gets: the log, and who it becomes."""

    log: Log
    identity: Identity
    census: Census

    def confine(self, role: Role) -> None:
        """Give up what the role does not need."""
        enter(role, self.identity, os.getppid())

    def worker_log(self, level: str, worker_id: str) -> Log:
        """Give the log of a worker."""
        return self.log.heir(Level[level], process_type="worker", worker_id=worker_id)


def relay(
    child: Child,
    control: socket.socket,
    receivers: Sequence[socket.socket],
    names: socket.socket,
    common: Common,
) -> int:
    """Be a relay; it begins when it has been told its plan, and takes sessions when told to."""
    common.confine(Role.RELAY)
    try:
        plan = _first_plan(control, common.log)
    except EOFError:
        return 0  # the supervisor is gone
    if plan is None:
        return 0
    log = common.worker_log(plan.loglevel, child.worker_id)
    column = Column(common.census, child.column)

    def start(loop: Loop, ended: Callable[[], None]) -> Relay:
        work = Relay(loop, receivers, Resolver(loop, names), plan, column, log, ended)
        send(control, Configured(plan.generation))
        return work

    def order(work: Relay, message: ToChild, descriptors: list[int]) -> None:
        if isinstance(message, Configure) and descriptors:
            new = decode(unseal(descriptors[0]))
            log.level = Level[new.loglevel]
            work.configure(new)
            send(control, Configured(new.generation))
        elif isinstance(message, Take):
            work.intake.start()
        elif isinstance(message, GiveAway) and descriptors:
            channels = [socket.socket(fileno=each) for each in descriptors]
            descriptors.clear()
            work.give_away(channels, message.most, given_away)

    def given_away(count: int) -> None:
        send(control, GivenAway(count))

    return worker.run(control, log, start, order)


def _first_plan(control: socket.socket, log: Log) -> Plan | None:
    """Wait for the plan; None when the end comes first."""
    while True:
        message, descriptors = receive_in_child(control)
        try:
            if isinstance(message, Configure) and descriptors:
                return decode(unseal(descriptors[0]))
            if isinstance(message, Drain | End):
                return None
            if isinstance(message, Reopen) and descriptors:
                log.replace(descriptors.pop())
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def template(
    generation: int,
    control: socket.socket,
    senders: tuple[socket.socket, ...],
    bound: tuple[Bound, ...],
    config: Config,
    common: Common,
    keep: set[int],
) -> int:
    """Be the template, whose children are the acceptors."""
    clients: list[Clients | None] = []
    log = common.log.heir(Level[config.loglevel], process_type="master")

    def plan(files: Files) -> Plan:
        made = make_plan(generation, config, bound, files, kernel_support(config, log))
        clients.extend(_clients(made.listeners[each.number]) for each in bound)
        return made

    def accept(number: int, column: int, own: socket.socket, engines: Engines) -> int:
        log = common.worker_log(config.loglevel, f"acceptor-{number}")
        doors = tuple(map(_door, bound, engines, clients))
        terms = Terms(
            generation,
            config.timeouts.handshake,
            config.limits,
            Column(common.census, column),
        )
        os.nice(ACCEPTOR_NICE)
        common.confine(Role.ACCEPTOR)

        def start(loop: Loop, ended: Callable[[], None]) -> Acceptor:
            return Acceptor(loop, doors, senders, terms, log, ended)

        return worker.run(own, log, start)

    work = Work(config, plan, lambda: common.confine(Role.TEMPLATE), accept)
    listening = tuple(each.sock for each in bound)
    return Template(control, {*keep, log.fileno()}, listening, work).run(log)


def _clients(plan: ListenerPlan) -> Clients | None:
    return None if plan.clients.mode == "none" else Clients(plan.clients)


def _door(bound: Bound, engine: OpenSSLEngine | None, clients: Clients | None) -> Door:
    listener = bound.listener
    passes = any(route.passthrough for route in listener.routes)
    return Door(
        number=bound.number,
        sock=bound.sock,
        engine=engine,
        listen_ip=bound.ip,
        listen_port=bound.port,
        clients=clients,
        routes=Routes(listener.routes) if passes else None,
        alpn=listener.alpn,
        proxies=tuple(map(ipaddress.ip_network, listener.accept_proxy)),
        max_connections=listener.max_connections,
    )


def resolver(
    control: socket.socket,
    channels: tuple[socket.socket, ...],
    addresses: tuple[TargetAddress, ...],
    common: Common,
) -> int:
    """Be the resolver."""
    log = common.log.heir(common.log.level, process_type="worker", worker_id="resolver")
    common.confine(Role.RESOLVER)
    return resolving.run(control, channels, addresses, log)


def serve_metrics(control: socket.socket, listening: socket.socket, common: Common) -> int:
    """Be the monitor."""
    from handfast.process import monitor  # noqa: PLC0415  see `sidecars`

    log = common.log.heir(common.log.level, process_type="worker", worker_id="monitor")
    common.confine(Role.MONITOR)
    return monitor.run(control, listening, log)


def serve_demo(control: socket.socket, listening: socket.socket, common: Common) -> int:
    """Be the demo service."""
    from handfast.process import demo  # noqa: PLC0415  see `sidecars`

    return demo.serve(control, listening, lambda: common.confine(Role.MONITOR))
