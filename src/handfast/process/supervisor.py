"""The supervisor: binds, forks, watches, replaces, and obeys signals and the control socket.

It touches no byte of a peer and reads no key; packets that it has kept over a restart
(`departure`, `arrival`) are closed letters to it. Its children are the relays, the resolver, the
monitor, the templates that fork the acceptors (see `generation`), and the demo service of the
embedded default.
How it ends is told in `ending`.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
from setproctitle import setproctitle

from handfast import __version__
from handfast.config import Config, TargetAddress
from handfast.errors import ConfigError, HandfastError
from handfast.observe.counters import Histogram
from handfast.observe.events import (
    Doubtful,
    Level,
    Listening,
    Startup,
    Stopped,
    SystemFault,
)
from handfast.observe.log import Log
from handfast.observe.status import State, Status
from handfast.process import roles
from handfast.process.arrival import Arrival
from handfast.process.bequest import bequest
from handfast.process.child import Child, Kind
from handfast.process.columns import Columns, shared_by, wanted
from handfast.process.control import ControlServer
from handfast.process.departure import Departure
from handfast.process.ending import Ending
from handfast.process.family import Family, Role, cause, kill
from handfast.process.gathering import Gatherings
from handfast.process.generation import Generation
from handfast.process.generations import Generations
from handfast.process.inheritance import Inheritance, Program
from handfast.process.isolation import prepare
from handfast.process.linux import reap_orphans, signal_descriptor
from handfast.process.listeners import Listeners
from handfast.process.listening import Bound
from handfast.process.messages import (
    Configured,
    FromChild,
    GivenAway,
    Ready,
    Report,
    StatusRequest,
)
from handfast.process.orders import SIGNALS, Orders
from handfast.process.overview import Overview
from handfast.process.pidfile import PidFile
from handfast.process.relays import Pair, Relays
from handfast.process.sidecars import Sidecars
from handfast.process.source import Source
from handfast.process.succession import this_program
from handfast.process.systemd import ServiceManager
from handfast.process.upgrades import Inherited, Measurer, Upgrades
from handfast.process.watching import Watcher, files_of
from handfast.process.worker import bug, tell_losses
from handfast.transport.census import Census, share
from handfast.transport.loop import Loop


class Plan(msgspec.Struct, frozen=True):
    """What to run.

    `announce` is called once, when everything serves, with what was bound. `arguments` are
    those of the command, for the next program. `demo` is a listening socket for the demo service.
    `inherited` is what the program left whose place this one takes. In a proof the death of any
    process is the end.
    """

    config: Config
    source: Source
    control: Path
    announce: Callable[[tuple[Bound, ...]], None]
    arguments: tuple[str, ...] = ()
    demo: socket.socket | None = None
    manager: ServiceManager | None = None
    pidfile: PidFile | None = None
    inherited: Inherited | None = None
    is_proof: bool = False


class Supervisor:
    """One running handfast."""

    def __init__(self, plan: Plan, log: Log) -> None:
        config = plan.config
        self.plan = plan
        self.log = log
        self.loop = Loop(on_error=self._failed)
        tell_losses(log, self.loop)
        self.state: State = "starting"
        self._error: HandfastError | None = None
        self.manager = plan.manager or ServiceManager({})
        known = shared_by(config.nworkers, plan.inherited.inheritance if plan.inherited else None)
        self.census = Census(shared=known or share(wanted(config.nworkers)))
        self._common = roles.Common(log, prepare(config.isolation), self.census)
        self.arrival = Arrival(self.manager, self.loop, log, self.succeeded)
        left = plan.inherited.inheritance if plan.inherited else self.arrival.inheritance
        self.gatherings = Gatherings(self.loop, self._status, left.counts if left else None)
        self._signals = signal_descriptor(SIGNALS)
        self.family = Family(self.loop, log, self._heard, self._buried)
        program = this_program(plan.arguments)
        self.upgrades = Upgrades(self, program, plan.inherited, self.family, self.loop, log)
        used = self.upgrades.predecessors.columns(known=known is not None)
        columns = self._columns = Columns(self.census, used)
        life = partial(roles.relay, common=self._common)
        self.relays = Relays(
            config.nworkers, self.family, columns, self.loop, life, _channels(left)
        )
        listeners = Listeners(self.manager.claim)
        if left is not None:
            listeners.inherit(left)
        self.generations = Generations(
            source=plan.source,
            listeners=listeners,
            serving=self,
            relays=self.relays,
            family=self.family,
            columns=columns,
            loop=self.loop,
            log=log,
        )
        if left is not None:
            self.generations.number, self.generations.reloads = left.generation, left.reloads
        self.control: ControlServer | None = None
        self.orders = Orders(self, self._signals)
        self.watcher = Watcher(self.loop, self.orders.reload)
        self.sidecars = Sidecars(
            config.metrics, plan.demo, self.relays, self.family, self.loop, self._common
        )
        self.overview = Overview(
            plan.source.name,
            self.generations,
            self.relays,
            self.sidecars,
            self.upgrades,
            self.census,
            left.started if left else time.monotonic(),
        )
        self.ending = Ending(self)
        self.departure = Departure(self)

    def run(self) -> None:
        """Run until the end. Raises HandfastError when it cannot start, ConfigError included."""
        log = self.log
        setproctitle("handfast: supervisor")
        log.emit(Startup(argv=shlex.join(sys.argv), version=__version__))
        try:
            try:
                self._start()
            except OSError as error:
                self._cannot_start(HandfastError(f"cannot start: {error.strerror or error}"))
            except HandfastError as error:
                self._cannot_start(error)
            self.loop.run()
        except HandfastError as error:
            log.emit(SystemFault(error_msg=str(error), fatal=True))
            raise
        finally:
            self._close()
        if self._error is not None:
            raise self._error

    def _cannot_start(self, error: HandfastError) -> None:
        if not self.upgrades.cannot_start(error):
            raise error

    def _start(self) -> None:
        """Begin with everything; what it takes comes step by step, in the loop."""
        config, left = self.plan.config, self.plan.inherited
        inheritance = left.inheritance if left else None
        self.loop.add_reader(self._signals, self.orders.on_signal)
        self.orders.mend_log()
        if self.manager.watchdog:
            self._feed_watchdog()
        self.control = self._listen_for_commands(inheritance)
        self.upgrades.await_answers(self.control)
        self.arrival.tell()
        for each in self._common.identity.missing:
            self.log.emit(Doubtful(f"isolation is not complete: {each}"))
        self.sidecars.listen(inheritance.metrics if inheritance else None)
        self.sidecars.resolve_for(_addresses(config))
        self.generations.begin(config)
        for sock in self.manager.sockets:
            name = sock.getsockname()
            self.log.emit(Doubtful(f"systemd passes a socket on {name} that no listener is for"))
        self.relays.start()
        self.sidecars.start()

    def _listen_for_commands(self, left: Inheritance | None) -> ControlServer:
        path, place = self.plan.control, left.control if left else None
        inherited = None
        if place is not None and place.name == str(path):
            inherited = socket.socket(fileno=place.descriptor)
        return ControlServer(path, self.loop, self.orders.handle, inherited)

    def _close(self) -> None:
        self.family.kill_all()
        self.ending.leave_store()
        self.generations.listeners.close()
        self.relays.close()
        self.sidecars.close()
        self.log.emit(Stopped())
        self.log.flush()
        if self.control is not None:
            self.control.close()
        self.loop.close()
        os.close(self._signals)
        if self.census.shared is not None:
            os.close(self.census.shared.descriptor)

    def _failed(self, error: Exception) -> None:
        self.log.emit(bug(error))

    # Children

    def template(self, generation: Generation) -> Role:
        """Give what a generation's template is to run; its files are watched from before that."""
        self._watch(generation.config)
        senders = self.relays.senders
        bound = generation.bound
        keep = {each.fileno() for each in senders} | {each.sock.fileno() for each in bound}

        def role(control: socket.socket) -> tuple[Callable[[], int], set[int]]:
            number, config = generation.number, generation.config
            return (
                lambda: roles.template(number, control, senders, bound, config, self._common, keep),
                keep,
            )

        return role

    def _heard(self, child: Child, message: FromChild, descriptors: list[int]) -> None:
        if isinstance(message, Report):
            self.gatherings.report(message.query, child, message.counters)
        elif isinstance(message, StatusRequest):
            if child.kind is Kind.MONITOR and child.control is not None:
                workers = self.overview.workers()
                self.gatherings.start_for_monitor(child.control, message.number, workers)
        elif child in self.upgrades.children:
            for dead in self.upgrades.heard(child, message):
                self._lost(dead)
        elif child.kind in (Kind.TEMPLATE, Kind.ACCEPTOR):
            for acceptor in self.generations.heard(child, message, descriptors):
                self.gatherings.lost(acceptor)
                self._fail_if_proof(acceptor, "has ended")
        elif isinstance(message, Configured):
            self.relays.confirmed(child, message.generation)
        elif isinstance(message, GivenAway):
            self.orders.given(child, message.count)
        elif isinstance(message, Ready):
            child.ready = True
            self.generations.relays_changed()
        self._serving_if_ready()

    def _buried(self, child: Child, status: int) -> None:
        if child in self.upgrades.children:
            for dead in self.upgrades.buried(child, status):
                self._lost(dead)
        elif child.kind is Kind.TEMPLATE:
            for acceptor in self.generations.died(child, status):
                self.gatherings.lost(acceptor)
        elif child.kind is Kind.RELAY:
            self.relays.died(child, status)
        else:
            self.sidecars.died(child, status)
        self.gatherings.lost(child)
        self.orders.lost(child)
        self._fail_if_proof(child, cause(status))
        self.reap_orphans()  # those behind it in the kernel's list
        if self.state == "draining":
            self.ending.go_on()

    def _lost(self, predecessor: Child) -> None:
        self.gatherings.lost(predecessor)
        self._columns.give_back(predecessor)

    def _fail_if_proof(self, child: Child, how: str) -> None:
        if self.plan.is_proof and self.state != "draining":
            self.give_up(HandfastError(f"{child.name} {how}"))

    def reap_orphans(self) -> None:
        reap_orphans({each.pid for each in self.family.children})

    # Generations

    def loaded(self, config: Config, old: Config | None) -> None:
        """Prepare for a generation that is about to serve, beside the old one."""
        self.sidecars.resolve_for((*_addresses(config), *(_addresses(old) if old else ())))

    def serving(self, config: Config) -> None:
        """Go by the configuration of the generation that serves from now on."""
        self.log.level = Level[config.loglevel]
        limits = config.limits
        self.census.set_prefixes(limits.source_prefix_v4, limits.source_prefix_v6)
        self.sidecars.resolve_for(_addresses(config))
        self._serving_if_ready()

    def _watch(self, config: Config) -> None:
        if config.watch:
            file = self.plan.source.file
            self.watcher.watch((*([file] if file else []), *files_of(config)))
        else:
            self.watcher.close()

    def cannot_start(self, error: ConfigError) -> None:
        """End, because the first generation was refused and no program before can serve."""
        if not self.upgrades.cannot_start(error):
            self.give_up(error)

    def retreat(self) -> None:
        """End our own processes, which do not come up, and keep every socket."""
        self.generations.retreat()
        self.relays.drain()
        self.sidecars.end()
        for child in self.family.children - set(self.upgrades.predecessors.children):
            kill(child)

    def give_up(self, error: HandfastError) -> None:
        """End, because nobody serves any more."""
        self.log.emit(SystemFault(error_msg=str(error), fatal=True))
        self._error = error
        self.loop.stop()

    def _serving_if_ready(self) -> None:
        current = self.generations.current
        if self.state != "starting" or current is None or not self.sidecars.ready:
            return
        self.state = "serving"
        self.relays.take()
        self.upgrades.came_up(self.relays.senders, current.config.timeouts.handshake)
        for bound in current.bound:
            self.log.emit(Listening(bound.ip, bound.port or None))
        self.log.flush()
        self.plan.announce(current.bound)
        self.manager.ready()
        self.arrival.serving(self.relays.senders)
        self.orders.catch_up()

    def _feed_watchdog(self) -> None:
        self.manager.alive()
        self.loop.call_later(self.manager.watchdog, self._feed_watchdog)

    def tell_manager(self) -> None:
        """Tell the service manager that a reload or an upgrade is over."""
        if self.state == "serving" or self.upgrades.is_stranded:
            self.manager.ready()

    def is_quiet(self) -> bool:
        """Tell whether nobody waits for an answer, no generation for its turn, and all stay."""
        asking = self.control.clients if self.control is not None else ()
        several = (self.generations, self.gatherings, self.orders, self.arrival)
        busy = self.state == "draining" or any(each.busy for each in several)
        return not busy and len(asking) <= self.upgrades.waiting

    def stalls(self) -> Histogram:
        """Give how long connections stood still that came to the relays of this program."""
        return self.gatherings.stalls(self.relays.children)

    def ask(self, client: Measurer) -> None:
        """Ask the workers for what they have counted."""
        self.gatherings.start(client, self.overview.workers())

    def bequeath(self, successor: Program) -> Inheritance:
        """Give all that the next program is to have."""
        return bequest(self, successor)

    def succeeded(self) -> None:
        """Close what the program before left and nobody uses: its processes have gone."""
        self.generations.listeners.drop_inherited()
        if self.plan.inherited is not None:
            left, config = self.plan.inherited.inheritance, self.plan.config
            left.drop_places({str(self.plan.control), config.pidfile, str(config.metrics)})
            if left.census and left.census != self.census.shared:
                os.close(left.census.descriptor)
        self.orders.catch_up()

    def _status(self, reports: dict[Child, dict[str, int]]) -> Status:
        return self.overview.status(self.state, reports)


def _channels(left: Inheritance | None) -> list[Pair]:
    pairs = left.channels if left else ()
    return [(socket.socket(fileno=one), socket.socket(fileno=other)) for one, other in pairs]


def _addresses(config: Config) -> tuple[TargetAddress, ...]:
    return tuple(target.address for target in config.targets)
