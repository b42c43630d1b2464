"""The supervisor: binds, forks, watches, replaces, and obeys signals and the control socket.

It touches no byte of a peer and reads no key. Its children are the relays, the template that
forks the acceptors (see `template`), and the demo service of the embedded default. It keeps both
ends of every hand-over channel, so sessions that wait for a relay survive the relay.

Its end has three steps, each beginning when the one before is done: acceptors finish their
handshakes, relays finish their connections, the rest is told to end. A deadline bounds them all.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec
from setproctitle import setproctitle

from handfast import __version__
from handfast.config import Config
from handfast.errors import ConfigError, HandfastBug, HandfastError, Problem
from handfast.handover import channel
from handfast.observe.counters import merge
from handfast.observe.events import (
    ConfigLoaded,
    Draining,
    Event,
    Listening,
    SignalReceived,
    Startup,
    Stopped,
    SystemFault,
    Worker,
)
from handfast.observe.log import Log
from handfast.process import roles
from handfast.process.child import Child, Kind
from handfast.process.commands import Answer, ProcessStatus, Request, Status
from handfast.process.control import ControlServer, Pending
from handfast.process.fork import fork
from handfast.process.gathering import Gatherings
from handfast.process.linux import read_signals, signal_descriptor
from handfast.process.listening import Bound, bind
from handfast.process.messages import (
    Died,
    Drain,
    End,
    FromChild,
    Ready,
    Refused,
    Report,
    Spawn,
    Spawned,
    control_pair,
    receive_from_child,
    send,
)
from handfast.transport.loop import Loop

_SIGNALS: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
_KILL_SECONDS: Final = 1.0


class Plan(msgspec.Struct, frozen=True):
    """What to run. `source` is the configuration file's path, or what stands for it.

    `announce` is called once, when everything serves, with what was bound.
    """

    config: Config
    source: str
    control: Path
    announce: Callable[[tuple[Bound, ...]], None]
    demo: socket.socket | None = None


class Supervisor:
    """One running handfast."""

    def __init__(self, plan: Plan, log: Log) -> None:
        self._plan = plan
        self._log = log
        self._loop = Loop()
        self._started = time.monotonic()
        self._state: Literal["starting", "serving", "draining"] = "starting"
        self._refused: tuple[str, ...] = ()
        self._gatherings = Gatherings(self._loop, self._status)
        self._signals = signal_descriptor(_SIGNALS)
        self._bound: tuple[Bound, ...] = ()
        workers = range(1, plan.config.nworkers + 1)
        self._channels = tuple(channel.pair() for _ in workers)
        self._relays = tuple(Child(Kind.RELAY, number) for number in workers)
        self._acceptors = tuple(Child(Kind.ACCEPTOR, number) for number in workers)
        self._template = Child(Kind.TEMPLATE, 0)
        self._demo = (Child(Kind.DEMO, 0),) if plan.demo is not None else ()

    def run(self) -> None:
        """Run until the end. Raises HandfastError when it cannot start, ConfigError included."""
        log, config = self._log, self._plan.config
        setproctitle("handfast: supervisor")
        log.emit(Startup(argv=shlex.join(sys.argv), version=__version__))
        server = ControlServer(self._plan.control, self._loop, self._handle)
        try:
            self._bound = self._bind_all()
            for event in _config_events(config):
                log.emit(event)
            self._loop.add_reader(self._signals, self._on_signal)
            for child in (*self._demo, *self._relays, self._template):
                self._fork(child)
            self._loop.run()
        finally:
            self._kill_all()
            for bound in self._bound:
                roles.unbind(bound)
            log.emit(Stopped())
            log.flush()
            server.close()
            self._loop.close()
            os.close(self._signals)
        if self._refused:
            raise ConfigError(*(Problem(each) for each in self._refused))

    def _bind_all(self) -> tuple[Bound, ...]:
        bound: list[Bound] = []
        try:
            for listener in self._plan.config.listeners:
                bound.append(bind(listener))  # noqa: PERF401 - those before a failure are closed
        except HandfastError as error:
            for each in bound:
                roles.unbind(each)
            self._log.emit(SystemFault(error_msg=str(error), fatal=True))
            raise
        return tuple(bound)

    # Children

    def _fork(self, child: Child) -> None:
        """Fork a relay, the template or the demo, with its end of a control pair."""
        if self._state == "draining":
            return
        ours, theirs = control_pair()
        main, keep = self._role(child, theirs)
        try:
            child.pid = fork(child.name, main, {*keep, theirs.fileno(), self._log.fileno()})
        except OSError as error:  # too many processes, or too little memory
            ours.close()
            child.started = time.monotonic()
            self._log.emit(
                SystemFault(
                    error_msg=f"cannot fork {child.name}", error_desc=error.strerror or str(error)
                )
            )
            self._loop.call_later(child.delay(child.started), lambda: self._fork(child))
            return
        finally:
            theirs.close()
        child.control = ours
        child.started = time.monotonic()
        child.pidfd = os.pidfd_open(child.pid)
        self._loop.add_reader(child.pidfd, lambda: self._reap(child))
        self._loop.add_reader(ours.fileno(), lambda: self._hear(child))
        self._log.emit(Worker("spawned", child.worker_id, child.pid))

    def _role(self, child: Child, control: socket.socket) -> tuple[Callable[[], int], set[int]]:
        plan, log, bound = self._plan, self._log, self._bound
        if child.kind is Kind.RELAY:
            receiver = self._channels[child.number - 1][1]
            return (
                lambda: roles.relay(child, control, receiver, bound, plan.config, log),
                {receiver.fileno()},
            )
        if child.kind is Kind.TEMPLATE:
            senders = tuple(sender for sender, _ in self._channels)
            keep = {each.fileno() for each in senders} | {each.sock.fileno() for each in bound}
            return (
                lambda: roles.template(control, senders, bound, plan.config, log, keep),
                keep,
            )
        if plan.demo is None:
            raise HandfastBug(f"the supervisor does not fork {child.name}")
        demo = plan.demo
        return lambda: roles.demo(control, demo), {demo.fileno()}

    def _spawn(self, acceptor: Child) -> None:
        """Have the template fork an acceptor."""
        if self._state == "draining" or self._template.control is None:
            return
        ours, theirs = control_pair()
        acceptor.control = ours
        self._loop.add_reader(ours.fileno(), lambda: self._hear(acceptor))
        send(self._template.control, Spawn(acceptor.number), theirs.fileno())
        theirs.close()

    def _reap(self, child: Child) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        self._loop.remove_reader(child.pidfd)
        os.close(child.pidfd)
        self._drop_control(child, drain=True)
        if child is self._template:
            for acceptor in self._acceptors:
                if acceptor.pid:
                    self._dead(acceptor, -signal.SIGKILL)
        self._dead(child, status)
        if self._state != "draining":
            self._loop.call_later(child.delay(time.monotonic()), lambda: self._fork(child))

    def _dead(self, child: Child, status: int) -> None:
        pid, child.pid, child.ready = child.pid, 0, False
        self._drop_control(child)
        reason = _cause(status) if status or self._state != "draining" else ""
        self._log.emit(Worker("dead", child.worker_id, pid, reason))
        self._gatherings.lost(child)
        if self._state == "draining":
            self._go_on_draining()

    def _drop_control(self, child: Child, *, drain: bool = False) -> None:
        if drain:
            while child.control is not None and self._hear(child):
                pass
        if child.control is not None:
            self._loop.remove_reader(child.control.fileno())
            child.control.close()
            child.control = None

    def _hear(self, child: Child) -> bool:
        """Take one message of a child's, if there is any; one without sense is a reason to kill."""
        control = child.control
        if control is None:
            return False
        try:
            message = receive_from_child(control)
        except EOFError:
            self._drop_control(child)
            return False
        except HandfastError as error:
            self._log.emit(SystemFault(error_msg=f"{child.name}: {error}"))
            self._drop_control(child)
            if child.pid:
                with contextlib.suppress(ProcessLookupError):  # it is dead already
                    os.kill(child.pid, signal.SIGKILL)
            return False
        if message is not None:
            self._take(child, message)
        return message is not None

    def _take(self, child: Child, message: FromChild) -> None:
        if isinstance(message, Ready):
            child.ready = True
            if child is self._template:
                for acceptor in self._acceptors:
                    self._spawn(acceptor)
            self._serving_if_ready()
        elif isinstance(message, Report):
            self._gatherings.report(message.query, child, message.counters)
        elif child is self._template:
            self._take_from_template(message)

    def _take_from_template(self, message: FromChild) -> None:
        if isinstance(message, Refused):
            self._refused = message.problems
            self._loop.stop()
            return
        if not isinstance(message, Spawned | Died) or not 0 < message.number <= len(
            self._acceptors
        ):
            return
        acceptor = self._acceptors[message.number - 1]
        if isinstance(message, Spawned):
            acceptor.pid = message.pid
            acceptor.started = time.monotonic()
            self._log.emit(Worker("spawned", acceptor.worker_id, acceptor.pid))
        elif acceptor.pid == message.pid:
            if not message.pid:
                acceptor.started = time.monotonic()  # it could not be forked: died at once
            self._dead(acceptor, message.status)
            delay = acceptor.delay(time.monotonic())
            self._loop.call_later(delay, lambda: self._respawn(acceptor))

    def _respawn(self, acceptor: Child) -> None:
        if not acceptor.pid and acceptor.control is None and self._template.ready:
            self._spawn(acceptor)

    def _serving_if_ready(self) -> None:
        everyone = (*self._demo, *self._relays, self._template, *self._acceptors)
        if self._state != "starting" or not all(child.ready for child in everyone):
            return
        self._state = "serving"
        for bound in self._bound:
            self._log.emit(Listening(bound.ip, bound.port or None))
        self._plan.announce(self._bound)

    # Orders

    def _on_signal(self) -> None:
        for received in read_signals(self._signals):
            if received.number == signal.SIGCHLD:
                continue  # the pidfds tell which child it was
            name = signal.strsignal(received.number) or str(received.number)
            self._log.emit(SignalReceived(received.number, name, received.sender or None))
            if received.number in (signal.SIGTERM, signal.SIGINT):
                if self._state == "draining":
                    self._loop.stop()
                else:
                    self._drain()

    def _handle(self, request: Request, client: Pending) -> None:
        if request.command == "stop":
            client.answer(Answer())
            if self._state != "draining":
                self._drain()
            return  # its connection closes with the control socket, at the very end
        self._gatherings.start(client, self._workers())

    def _workers(self) -> tuple[Child, ...]:
        return (*self._acceptors, *self._relays)

    def _status(self, reports: dict[Child, dict[str, int]]) -> Status:
        children = (*self._demo, self._template, *self._workers())
        processes = (
            ProcessStatus(child.worker_id, child.pid, reports.get(child, {}))
            for child in children
            if child.pid
        )
        return Status(
            version=__version__,
            pid=os.getpid(),
            uptime=round(time.monotonic() - self._started, 3),
            state=self._state,
            config=self._plan.source,
            listeners=tuple(
                {"listen": each.text, "target": str(each.listener.target)} for each in self._bound
            ),
            processes=(ProcessStatus("supervisor", os.getpid()), *processes),
            totals=merge(reports.values()),
        )

    # The end

    def _drain(self) -> None:
        self._state = "draining"
        drain = self._plan.config.timeouts.drain
        self._log.emit(Draining(drain))
        for bound in self._bound:
            roles.unbind(bound)
        for child in (*self._acceptors, self._template):
            if child.control is not None:
                send(child.control, Drain())
        self._loop.call_later(drain, self._end)
        self._go_on_draining()

    def _go_on_draining(self) -> None:
        """Take the next step when the one before is done."""
        if self._template.pid:
            return
        alive = [child for child in self._relays if child.pid]
        for child in alive:
            if child.control is not None:
                send(child.control, Drain())
        if not alive:
            self._loop.stop()

    def _end(self) -> None:
        """End what has not ended in time."""
        if self._template.pid:
            os.kill(self._template.pid, signal.SIGKILL)  # its acceptors die with it
        for child in self._relays:
            if child.control is not None:
                send(child.control, End("handfast is stopping"))
        self._loop.call_later(_KILL_SECONDS, self._loop.stop)

    def _kill_all(self) -> None:
        for child in (*self._demo, *self._relays, self._template):
            if child.pid:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
                child.pid = 0


def _cause(status: int) -> str:
    if status < 0:
        return f"killed by signal {-status} ({signal.strsignal(-status)})"
    return f"ended with status {status}"


def _config_events(config: Config) -> list[Event]:
    events: list[Event] = []
    for listener in config.listeners:
        certificate = listener.certificates[0]
        events.append(
            ConfigLoaded(
                nworkers=config.nworkers,
                certchain=certificate.chain or "",
                cacerts=":".join(certificate.cacerts),
                servcert=certificate.cert or "",
                servkey=certificate.key,
                listener=str(listener.address),
                target=str(listener.target),
            )
        )
    return events
