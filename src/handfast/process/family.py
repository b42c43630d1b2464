"""The supervisor's processes: forked, heard, and buried.

Most are its own children, which it forks and reaps. Acceptors are the template's, which tells of
their births and deaths; what they say comes over their own control sockets all the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from handfast.errors import HandfastError
from handfast.observe.events import SystemFault, Worker
from handfast.observe.log import Log
from handfast.process.child import Child, Kind
from handfast.process.fork import fork
from handfast.process.messages import FromChild, control_pair, receive_from_child
from handfast.transport.loop import Loop, Timer

Role: TypeAlias = Callable[[socket.socket], tuple[Callable[[], int], set[int]]]
"""Given a child's end of its control pair: what it runs, and the descriptors that it keeps."""

_LEAVE_SECONDS: Final = 3.0

_LAST_WORDS: Final = 64
"""Messages of a child that another process has buried, at most: we do not see that it is dead."""

Heard: TypeAlias = Callable[[Child, FromChild, list[int]], None]
"""Takes a message of a child's; the descriptors are closed afterwards."""


class Family:
    """All processes but the supervisor. `heard` and `buried` tell of what happens to them."""

    def __init__(
        self, loop: Loop, log: Log, heard: Heard, buried: Callable[[Child, int], None]
    ) -> None:
        self._loop = loop
        self._log = log
        self._heard = heard
        self._buried = buried
        self.children: set[Child] = set()  # our own, that live
        self._killers: dict[Child, Callable[[], object]] = {}
        self._leaving: dict[Child, Timer] = {}

    def fork(self, child: Child, role: Role) -> bool:
        """Fork a child; False when the system has no room for one now."""
        try:
            ours = self._fork(child, role)
        except OSError as error:  # too many processes or descriptors, or too little memory
            child.started = time.monotonic()
            reason = error.strerror or str(error)
            self._log.emit(SystemFault(f"cannot fork {child.name}", reason))
            return False
        self.children.add(child)
        self._loop.add_reader(child.pidfd, lambda: self._reap(child))
        self._listen(child, ours)
        self.born(child, child.pid)
        return True

    def _fork(self, child: Child, role: Role) -> socket.socket:
        """Fork, and give our end of its control pair; OSError leaves nothing behind."""
        ours, theirs = control_pair(takes_descriptors=child.kind is Kind.TEMPLATE)
        pid = 0
        try:
            main, keep = role(theirs)
            pid = fork(child.name, main, {*keep, theirs.fileno(), self._log.fileno()})
            child.pidfd = os.pidfd_open(pid)
        except OSError:
            ours.close()
            if pid:  # nobody would see it die
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise
        finally:
            theirs.close()
        child.pid = pid
        return ours

    def adopt(self, child: Child, control: socket.socket | None, *, own: bool) -> None:
        """Take over a child of the program before, which has forked it in this process.

        `own` says that it is a child of this process; else another one tells of its death.
        """
        if own:
            child.pidfd = os.pidfd_open(child.pid)
            self.children.add(child)
            self._loop.add_reader(child.pidfd, lambda: self._reap(child))
        if control is not None:
            control.setblocking(False)
            self._listen(child, control)

    def expect(self, child: Child, killer: Callable[[], object] | None = None) -> socket.socket:
        """Prepare for a child that another process forks; give the end that it is to have.

        `killer` has that process end it. Raises OSError when there are no descriptors left.
        """
        ours, theirs = control_pair(takes_descriptors=False)
        self._listen(child, ours)
        if killer is not None:
            self._killers[child] = killer
        return theirs

    def born(self, child: Child, pid: int) -> None:
        """Take note of a birth."""
        child.pid = pid
        child.started = time.monotonic()
        self._log.emit(Worker("spawned", child.worker_id, pid))

    def dead(self, child: Child, status: int, *, expected: bool) -> None:
        """Take note of a death, by what `os.waitstatus_to_exitcode` gave."""
        for _ in range(_LAST_WORDS):
            if not self._hear(child):
                break
        pid, child.pid, child.ready = child.pid, 0, False
        self._silence(child)
        if timer := self._leaving.pop(child, None):
            timer.cancel()  # it would keep a whole generation in memory
        reason = "" if expected and not status else cause(status)
        self._log.emit(Worker("dead", child.worker_id, pid, reason))

    def _listen(self, child: Child, control: socket.socket) -> None:
        child.control = control
        self._loop.add_reader(control.fileno(), lambda: self._hear(child))

    def _silence(self, child: Child) -> None:
        if child.control is not None:
            self._loop.remove_reader(child.control.fileno())
            child.control.close()
            child.control = None
        self._killers.pop(child, None)

    def _cast_out(self, child: Child) -> None:
        """End a child with which there is no talking: it would outlive its time."""
        killer = self._killers.get(child)
        self._silence(child)
        if killer is not None:
            killer()
        kill(child)

    def _outstayed(self, child: Child, killer: Callable[[], object] | None) -> None:
        """Kill a child that has closed its control socket some time ago, and lives."""
        self._leaving.pop(child, None)
        if child.pid and child.control is None:
            if killer is not None:
                killer()
            kill(child)

    def _reap(self, child: Child) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        self._loop.remove_reader(child.pidfd)
        os.close(child.pidfd)
        child.pidfd = -1
        self.children.discard(child)
        while self._hear(child):
            pass  # its last words
        self._buried(child, status)

    def _hear(self, child: Child) -> bool:
        """Take one message of a child's, if there is any.

        One without sense is a reason to kill, and so is it to live on with a closed control socket.
        """
        if child.control is None:
            return False
        try:
            received = receive_from_child(child.control)
        except EOFError:
            killer = self._killers.get(child)
            self._silence(child)
            # Closed at its end, which comes now; to be killed in it would look like a failure.
            self._leaving[child] = self._loop.call_later(
                _LEAVE_SECONDS, lambda: self._outstayed(child, killer)
            )
            return False
        except HandfastError as error:
            self._log.emit(SystemFault(f"{child.name}: {error}"))
            self._cast_out(child)
            return False
        if received is None:
            return False
        message, descriptors = received
        try:
            self._heard(child, message, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def kill_all(self) -> None:
        """Kill our own children, and with the templates their acceptors, and wait for them."""
        for child in self.children:
            kill(child)
        for child in self.children:
            os.waitpid(child.pid, 0)
            self._loop.remove_reader(child.pidfd)
            os.close(child.pidfd)
            child.pid, child.pidfd = 0, -1
        self.children.clear()


def kill(child: Child) -> None:
    """End a child of our own at once, if it lives: by its pidfd, which is never another's."""
    if child.pidfd >= 0:
        with contextlib.suppress(ProcessLookupError):  # it is dead already
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)


def cause(status: int) -> str:
    """Say how a process ended."""
    if status < 0:
        return f"killed by signal {-status} ({signal.strsignal(-status)})"
    return f"ended with status {status}"
