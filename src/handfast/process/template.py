"""The template: loads the certificates once and forks the acceptors from what it has loaded.

Acceptors have to share the keys of session tickets, so that a client resumes at any of them, and
the only way to share those is to inherit the contexts. So the template stays: an acceptor that
dies is forked again from the same contexts. It holds what an acceptor holds, but has no listening
socket in use and never sees a byte of a peer. Relays come from the supervisor, which never reads
a key.
"""

from __future__ import annotations

import datetime
import os
import select
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias, TypeVar

import msgspec

from handfast.config import Config
from handfast.errors import ConfigError
from handfast.observe.log import Log
from handfast.process.credentials import Files, engine, events, expiries, load_all
from handfast.process.fork import fork
from handfast.process.messages import (
    Died,
    Drain,
    Kill,
    Loaded,
    Refused,
    Reopen,
    Spawn,
    Spawned,
    receive_in_child,
    send,
)
from handfast.process.sealed import seal
from handfast.relay.plan import Plan, encode
from handfast.tls.openssl import OpenSSLEngine

T = TypeVar("T")
Engines: TypeAlias = tuple[OpenSSLEngine | None, ...]
"""By listener; None where all clients are passed through."""

# What a message has room for: so many, and so many bytes of them.
_MOST_PROBLEMS: Final = 100
_MOST_EXPIRIES: Final = 200
_ROOM: Final = 100_000
_LONGEST: Final = 20_000  # characters


class Child(msgspec.Struct, frozen=True):
    """An acceptor that runs."""

    number: int
    pid: int


class Work(msgspec.Struct, frozen=True, eq=False):
    """What a generation's template is to do.

    `plan` makes the relays' plan of what was loaded, or raises ConfigError. `confine` gives up what
    loading needed, and what no acceptor may have. `accept` is an acceptor's life, by its number and
    column.
    """

    config: Config
    plan: Callable[[Files], Plan]
    confine: Callable[[], None]
    accept: Callable[[int, int, socket.socket, Engines], int]


class Template:
    """Forks acceptors on the supervisor's orders, and tells it of their deaths."""

    def __init__(
        self,
        control: socket.socket,
        keep: set[int],
        listening: tuple[socket.socket, ...],
        work: Work,
    ) -> None:
        self._control = control
        self._keep = keep
        self._listening = listening
        self._work = work
        self._children: dict[int, Child] = {}  # by pidfd
        self._engines: Engines = ()
        self._draining = False

    def run(self, log: Log) -> int:
        """Load, then obey until the supervisor has gone or says that it is time to end."""
        try:
            loaded = self._load(log)
            plan = seal("plan", encode(self._work.plan(loaded)))
            log.flush()
        except ConfigError as error:
            texts = [each.message[:_LONGEST] for each in error.problems[:_MOST_PROBLEMS]]
            send(self._control, Refused(_fitting(texts)))
            return 1
        self._work.confine()
        send(self._control, self._describe(loaded), plan)
        os.close(plan)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while not self._draining or self._children:
            for descriptor, _ in poll.poll():
                if descriptor in self._children:
                    poll.unregister(descriptor)
                    self._bury(descriptor)
                elif not self._obey(poll, log):
                    return 0  # the supervisor is gone, and the acceptors go with us
        return 0

    def _load(self, log: Log) -> Files:
        now = datetime.datetime.now(datetime.UTC)
        config = self._work.config
        loaded = load_all(config, now)
        for each in loaded.listeners:
            for event in events(each, now):
                log.emit(event)
        pairs = zip(config.listeners, loaded.listeners, strict=True)
        self._engines = tuple(engine(listener, each) for listener, each in pairs)
        return loaded

    def _describe(self, loaded: Files) -> Loaded:
        pairs = zip(self._work.config.listeners, loaded.listeners, strict=True)
        found = [each for one, files in pairs for each in expiries(one.name, files)]
        found.sort(key=lambda each: each.not_after)
        return Loaded(_fitting(found[:_MOST_EXPIRIES]))

    def _obey(self, poll: select.poll, log: Log) -> bool:
        try:
            message, descriptors = receive_in_child(self._control)
        except EOFError:
            return False
        if isinstance(message, Spawn) and len(descriptors) == 1:
            self._spawn(message, socket.socket(fileno=descriptors[0]), poll)
        elif isinstance(message, Reopen) and len(descriptors) == 1:
            log.replace(descriptors[0])
        elif isinstance(message, Kill):
            self._kill(message.number)
        elif isinstance(message, Drain):
            self._drain()
        return True

    def _kill(self, number: int) -> None:
        for descriptor, child in self._children.items():
            if child.number == number:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)

    def _drain(self) -> None:
        """Stay until the last acceptor has ended; it would be killed with its parent."""
        self._draining = True
        # Whoever holds one of these has the kernel accept clients that nobody would serve.
        for sock in self._listening:
            sock.close()

    def _spawn(self, order: Spawn, control: socket.socket, poll: select.poll) -> None:
        number = order.number
        try:
            pid = fork(
                f"acceptor {number}",
                lambda: self._work.accept(number, order.column, control, self._engines),
                self._keep | {control.fileno()},
            )
        except OSError:  # too many processes: it counts as dead, and is asked for again
            send(self._control, Died(number, 0, 1))
            return
        finally:
            control.close()
        descriptor = os.pidfd_open(pid)
        self._children[descriptor] = Child(number, pid)
        poll.register(descriptor, select.POLLIN)
        send(self._control, Spawned(number, pid))

    def _bury(self, descriptor: int) -> None:
        child = self._children.pop(descriptor)
        os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        send(self._control, Died(child.number, child.pid, status))


def _fitting(values: Iterable[T]) -> tuple[T, ...]:
    """Give the first of the values, as many as a message has room for."""
    room = _ROOM
    fitting = []
    for each in values:
        room -= len(msgspec.msgpack.encode(each))
        if room < 0:
            break
        fitting.append(each)
    return tuple(fitting)
