"""The supervisor: binds, forks, watches, replaces, and obeys signals and the control socket.

It touches no byte of a peer and reads no key. Its children are the relays, the resolver, the
monitor, the templates that fork the acceptors (see `generation`), and the demo service of the
embedded default.

Its end has three steps, each beginning when the one before is done: acceptors finish their
handshakes, relays finish their connections, the rest is told to end. A deadline bounds them all.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from setproctitle import setproctitle

from handfast import __version__
from handfast.config import Config, TargetAddress
from handfast.errors import ConfigError, HandfastError
from handfast.observe.events import (
    Doubtful,
    Draining,
    Level,
    Listening,
    SignalReceived,
    Startup,
    Stopped,
    SystemFault,
)
from handfast.observe.log import Log
from handfast.observe.status import State, Status
from handfast.process import roles
from handfast.process.child import Child, Kind
from handfast.process.columns import Columns
from handfast.process.commands import Answer, Request
from handfast.process.control import ControlServer, Pending
from handfast.process.family import Family, Role
from handfast.process.gathering import Gatherings
from handfast.process.generation import Generation
from handfast.process.generations import Generations
from handfast.process.isolation import prepare
from handfast.process.linux import read_signals, reap_orphans, signal_descriptor
from handfast.process.listeners import Listeners
from handfast.process.listening import Bound
from handfast.process.messages import (
    Configured,
    FromChild,
    Ready,
    Reopen,
    Report,
    StatusRequest,
    send,
)
from handfast.process.overview import Overview
from handfast.process.relays import Relays
from handfast.process.sidecars import Sidecars
from handfast.process.source import Source
from handfast.process.systemd import ServiceManager
from handfast.process.watching import Watcher, files_of
from handfast.process.worker import bug, tell_losses
from handfast.transport.census import Census
from handfast.transport.loop import Loop

_SIGNALS: Final = {
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGUSR1,
}
_KILL_SECONDS: Final = 1.0
_MEND_SECONDS: Final = 1.0
_GENERATIONS: Final = 3
"""How many there can be at a time: one that ends, the one that serves, and the next."""


class Plan(msgspec.Struct, frozen=True):
    """What to run.

    `announce` is called once, when everything serves, with what was bound. `demo` is a listening
    socket for the demo service.
    """

    config: Config
    source: Source
    control: Path
    announce: Callable[[tuple[Bound, ...]], None]
    demo: socket.socket | None = None
    manager: ServiceManager | None = None


class Supervisor:
    """One running handfast."""

    def __init__(self, plan: Plan, log: Log) -> None:
        config = plan.config
        self._plan = plan
        self._log = log
        self._loop = Loop(on_error=self._failed)
        tell_losses(log, self._loop)
        self._state: State = "starting"
        self._error: HandfastError | None = None
        self._manager = plan.manager or ServiceManager({})
        self._common = roles.Common(log, prepare(config.isolation), Census(_columns(config)))
        self._gatherings = Gatherings(self._loop, self._status)
        self._signals = signal_descriptor(_SIGNALS)
        self._family = Family(self._loop, log, self._heard, self._buried)
        columns = Columns(self._common.census, _columns(config))
        self._relays = Relays(config.nworkers, self._family, columns, self._loop, self._relay)
        self._generations = Generations(
            source=plan.source,
            listeners=Listeners(self._manager.claim),
            serving=self,
            relays=self._relays,
            family=self._family,
            columns=columns,
            loop=self._loop,
            log=log,
        )
        self._watcher = Watcher(self._loop, self._reload)
        self._sidecars = Sidecars(
            config.metrics, plan.demo, self._relays, self._family, self._loop, self._common
        )
        self._overview = Overview(
            plan.source.name,
            self._generations,
            self._relays,
            self._sidecars,
            self._common.census,
        )

    def run(self) -> None:
        """Run until the end. Raises HandfastError when it cannot start, ConfigError included."""
        log, config = self._log, self._plan.config
        setproctitle("handfast: supervisor")
        log.emit(Startup(argv=shlex.join(sys.argv), version=__version__))
        server: ControlServer | None = None
        try:
            for each in self._common.identity.missing:
                log.emit(Doubtful(f"isolation is not complete: {each}"))
            server = ControlServer(self._plan.control, self._loop, self._handle)
            self._sidecars.listen()
            self._sidecars.resolve_for(_addresses(config))
            self._loop.add_reader(self._signals, self._on_signal)
            self._generations.begin(config)
            for sock in self._manager.sockets:
                name = sock.getsockname()
                log.emit(Doubtful(f"systemd passes a socket on {name} that no listener is for"))
            self._relays.start()
            self._sidecars.start()
            self._mend_log()
            self._loop.run()
        except HandfastError as error:
            log.emit(SystemFault(error_msg=str(error), fatal=True))
            raise
        finally:
            self._close(server)
        if self._error is not None:
            raise self._error

    def _close(self, server: ControlServer | None) -> None:
        self._family.kill_all()
        self._generations.listeners.close()
        self._relays.close()
        self._sidecars.close()
        self._log.emit(Stopped())
        self._log.flush()
        if server is not None:
            server.close()
        self._loop.close()
        os.close(self._signals)

    def _failed(self, error: Exception) -> None:
        self._log.emit(bug(error))

    # Children

    def _relay(
        self, child: Child, control: socket.socket, receiver: socket.socket, names: socket.socket
    ) -> int:
        return roles.relay(child, control, receiver, names, self._common)

    def template(self, generation: Generation) -> Role:
        """Give what a generation's template is to run; its files are watched from before that."""
        self._watch(generation.config)
        senders = self._relays.senders
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
            self._gatherings.report(message.query, child, message.counters)
        elif isinstance(message, StatusRequest):
            if child.kind is Kind.MONITOR and child.control is not None:
                workers = self._overview.workers()
                self._gatherings.start_for_monitor(child.control, message.number, workers)
        elif child.kind in (Kind.TEMPLATE, Kind.ACCEPTOR):
            for acceptor in self._generations.heard(child, message, descriptors):
                self._gatherings.lost(acceptor)
        elif isinstance(message, Configured):
            self._relays.confirmed(child, message.generation)
        elif isinstance(message, Ready):
            child.ready = True
            self._generations.relays_changed()
        self._serving_if_ready()

    def _buried(self, child: Child, status: int) -> None:
        if child.kind is Kind.TEMPLATE:
            for acceptor in self._generations.died(child, status):
                self._gatherings.lost(acceptor)
        elif child.kind is Kind.RELAY:
            self._relays.died(child, status)
        else:
            self._sidecars.died(child, status)
        self._gatherings.lost(child)
        self._reap_orphans()  # those behind it in the kernel's list
        if self._state == "draining":
            self._go_on_draining()

    def _reap_orphans(self) -> None:
        reap_orphans({each.pid for each in self._family.children})

    # Generations

    def loaded(self, config: Config, old: Config | None) -> None:
        """Prepare for a generation that is about to serve, beside the old one."""
        self._sidecars.resolve_for((*_addresses(config), *(_addresses(old) if old else ())))

    def serving(self, config: Config) -> None:
        """Go by the configuration of the generation that serves from now on."""
        self._log.level = Level[config.loglevel]
        limits = config.limits
        self._common.census.set_prefixes(limits.source_prefix_v4, limits.source_prefix_v6)
        self._sidecars.resolve_for(_addresses(config))
        self._serving_if_ready()

    def _watch(self, config: Config) -> None:
        if config.watch:
            file = self._plan.source.file
            self._watcher.watch((*([file] if file else []), *files_of(config)))
        else:
            self._watcher.close()

    def cannot_start(self, error: ConfigError) -> None:
        """End, because the first generation was refused."""
        self._log.emit(SystemFault(error_msg=str(error), fatal=True))
        self._error = error
        self._loop.stop()

    def _serving_if_ready(self) -> None:
        current = self._generations.current
        if self._state != "starting" or current is None or not self._sidecars.ready:
            return
        self._state = "serving"
        for bound in current.bound:
            self._log.emit(Listening(bound.ip, bound.port or None))
        self._log.flush()
        self._plan.announce(current.bound)
        self._manager.ready()
        if self._manager.watchdog:
            self._feed_watchdog()

    def _feed_watchdog(self) -> None:
        self._manager.alive()
        self._loop.call_later(self._manager.watchdog, self._feed_watchdog)

    # Orders

    def _on_signal(self) -> None:
        for received in read_signals(self._signals):
            if received.number == signal.SIGCHLD:
                self._reap_orphans()
                continue  # the pidfds tell of our own
            name = signal.strsignal(received.number) or str(received.number)
            self._log.emit(SignalReceived(received.number, name, received.sender or None))
            if received.number == signal.SIGHUP:
                self._reload()
            elif received.number == signal.SIGUSR1:
                self._reopen_log()
            elif self._state == "draining":
                self._loop.stop()
            else:
                self._drain()

    def _handle(self, request: Request, client: Pending) -> None:
        if request.command == "stop":
            client.answer(Answer())
            if self._state != "draining":
                self._drain()
            return  # its connection closes with the control socket, at the very end
        if request.command == "reload":
            self._reload(client)
        else:
            self._gatherings.start(client, self._overview.workers())

    def _reload(self, client: Pending | None = None) -> None:
        def answer(error: HandfastError | None) -> None:
            if self._state == "serving":
                self._manager.ready()
            if client is not None:
                wrong = isinstance(error, ConfigError)
                client.answer(Answer(str(error or ""), wrong_configuration=wrong))
                client.close()

        if self._state != "serving":
            answer(HandfastError(f"handfast is {self._state}; it cannot reload now"))
            return
        self._manager.reloading()
        self._generations.reload(answer)

    def _reopen_log(self) -> None:
        self._pass_log_on(self._log.reopen())

    def _pass_log_on(self, descriptor: int) -> None:
        for child in self._overview.everyone():
            if child.control is not None and child.kind is not Kind.DEMO:
                send(child.control, Reopen(), descriptor)

    def _mend_log(self) -> None:
        """Look from time to time whether the log's daemon has gone, and connect to the next."""
        if self._log.mend():
            self._pass_log_on(self._log.fileno())
        self._loop.call_later(_MEND_SECONDS, self._mend_log)

    def _status(self, reports: dict[Child, dict[str, int]]) -> Status:
        return self._overview.status(self._state, reports)

    # The end

    def _drain(self) -> None:
        self._state = "draining"
        current = self._generations.current
        drain = (current.config if current else self._plan.config).timeouts.drain
        self._log.emit(Draining(drain))
        self._manager.stopping(drain + _KILL_SECONDS)
        self._watcher.close()
        self._sidecars.end()
        self._generations.drain()
        self._loop.call_later(drain, self._end)
        self._go_on_draining()

    def _go_on_draining(self) -> None:
        """Take the next step when the one before is done."""
        if any(each.template.pid for each in self._generations):
            return
        if not self._relays.drain():
            self._loop.stop()

    def _end(self) -> None:
        """End what has not ended in time."""
        self._generations.kill()
        self._relays.end("handfast is stopping")
        self._loop.call_later(_KILL_SECONDS, self._loop.stop)


def _columns(config: Config) -> int:
    """Count the columns of the census: one for each relay, and for the acceptors that can be."""
    return config.nworkers * (1 + _GENERATIONS)


def _addresses(config: Config) -> tuple[TargetAddress, ...]:
    return tuple(target.address for target in config.targets)
