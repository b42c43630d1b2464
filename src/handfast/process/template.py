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
import socket
from collections.abc import Callable

import msgspec

from handfast.config import Config
from handfast.errors import ConfigError
from handfast.observe.log import Log
from handfast.process.credentials import engine, events, load_all
from handfast.process.fork import fork
from handfast.process.messages import (
    Died,
    Drain,
    Ready,
    Refused,
    Spawn,
    Spawned,
    receive_in_child,
    send,
)
from handfast.tls.openssl import OpenSSLEngine


class Child(msgspec.Struct, frozen=True):
    """An acceptor that runs."""

    number: int
    pid: int


class Template:
    """Forks acceptors on the supervisor's orders, and tells it of their deaths."""

    def __init__(
        self,
        control: socket.socket,
        keep: set[int],
        listening: tuple[socket.socket, ...],
        accept: Callable[[int, socket.socket, tuple[OpenSSLEngine, ...]], int],
    ) -> None:
        self._control = control
        self._keep = keep
        self._listening = listening
        self._accept = accept
        self._children: dict[int, Child] = {}  # by pidfd
        self._engines: tuple[OpenSSLEngine, ...] = ()

    def run(self, config: Config, log: Log) -> int:
        """Load, then obey until the supervisor has gone or says that it is time to end."""
        try:
            loaded = load_all(config)
        except ConfigError as error:
            send(self._control, Refused(tuple(each.message for each in error.problems)))
            return 1
        now = datetime.datetime.now(datetime.UTC)
        for each in loaded:
            for event in events(each, now):
                log.emit(event)
        log.flush()
        self._engines = tuple(
            engine(listener, each) for listener, each in zip(config.listeners, loaded, strict=True)
        )
        send(self._control, Ready())
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor in self._children:
                    poll.unregister(descriptor)
                    self._bury(descriptor)
                elif not self._obey(poll):
                    return self._wait_for_all()

    def _obey(self, poll: select.poll) -> bool:
        try:
            message, descriptors = receive_in_child(self._control)
        except EOFError:
            return False
        if isinstance(message, Spawn) and len(descriptors) == 1:
            self._spawn(message.number, socket.socket(fileno=descriptors[0]), poll)
        return not isinstance(message, Drain)

    def _spawn(self, number: int, control: socket.socket, poll: select.poll) -> None:
        try:
            pid = fork(
                f"acceptor {number}",
                lambda: self._accept(number, control, self._engines),
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

    def _wait_for_all(self) -> int:
        """Stay until the last acceptor has ended; it would be killed with its parent."""
        # Whoever holds one of these has the kernel accept clients that nobody would serve.
        for sock in self._listening:
            sock.close()
        for descriptor in list(self._children):
            self._bury(descriptor)
        return 0
