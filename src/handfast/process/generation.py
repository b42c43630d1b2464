"""One generation of the configuration: its template, and the acceptors that the template forks.

A generation is loaded by its template, which says Loaded or Refused. Then its acceptors are forked,
and forked again when they die; so is the template, with all of them, for they die with it. At its
end the acceptors finish their handshakes, and the template ends behind the last.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from handfast.config import Config
from handfast.observe.events import SystemFault
from handfast.observe.log import Log
from handfast.observe.status import CertificateExpiry
from handfast.process.child import Child, Kind
from handfast.process.columns import Columns
from handfast.process.family import Family, Role, kill
from handfast.process.listening import Bound
from handfast.process.messages import Died, Drain, End, Kill, Spawn, Spawned, send
from handfast.transport.alarm import Alarm
from handfast.transport.loop import Loop

_NO_COLUMN_SECONDS: Final = 0.1
_HURRY_SECONDS: Final = 1.0
_KILL_SECONDS: Final = 1.0
_LATE_SECONDS: Final = 5.0
"""How long after the handshakes' own deadline all of them have to be over."""


class Phase(Enum):
    """How far a generation has come."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class Generation:
    """The processes of one generation. `plan` is the relays' plan, a descriptor, once loaded."""

    def __init__(
        self,
        number: int,
        config: Config,
        bound: tuple[Bound, ...],
        family: Family,
        columns: Columns,
        loop: Loop,
        log: Log,
    ) -> None:
        self.number = number
        self.config = config
        self.bound = bound
        self.phase = Phase.LOADING
        self.plan = -1
        self.certificates: tuple[CertificateExpiry, ...] = ()
        self.template = Child(Kind.TEMPLATE, 0)
        self.acceptors = tuple(Child(Kind.ACCEPTOR, n + 1) for n in range(config.nworkers))
        self._family = family
        self._columns = columns
        self._loop = loop
        self._log = log
        self._role: Role | None = None
        self._alarm = Alarm(loop)
        self._hurried = False

    def __contains__(self, child: Child) -> bool:
        return child is self.template or child in self.acceptors

    @property
    def ready(self) -> bool:
        """Tell whether all acceptors accept."""
        return all(each.ready for each in self.acceptors)

    def start(self, role: Role) -> None:
        """Fork the template, to load the files."""
        self._role = role
        self._fork()

    def _fork(self) -> None:
        if self._role is None or self.phase is Phase.DRAINING or self.template.pid:
            return
        if not self._family.fork(self.template, self._role):
            self._later(self.template, self._fork)

    def _later(self, child: Child, action: Callable[[], None]) -> None:
        self._loop.call_later(child.delay(time.monotonic()), action)

    def loaded(self, plan: int, certificates: tuple[CertificateExpiry, ...]) -> None:
        """Take what the template has loaded; the plan's descriptor is copied."""
        copy = os.dup(plan)
        self.close_plan()
        self.plan = copy
        self.certificates = certificates
        self.template.ready = True

    def close_plan(self) -> None:
        """Close the plan's descriptor."""
        if self.plan >= 0:
            os.close(self.plan)
            self.plan = -1

    def serve(self) -> None:
        """Have every acceptor forked that is not there, unless the end has begun."""
        if self.phase is Phase.DRAINING:
            return
        self.phase = Phase.SERVING
        for acceptor in self.acceptors:
            self._spawn(acceptor)

    def _spawn(self, acceptor: Child) -> None:
        control = self.template.control
        if self.phase is not Phase.SERVING or not self.template.ready or control is None:
            return
        if acceptor.pid or acceptor.control is not None:
            return
        if acceptor.column < 0:
            acceptor.column = self._columns.take()
        if acceptor.column < 0:  # generations that end hold all of them for a moment
            self._loop.call_later(_NO_COLUMN_SECONDS, lambda: self._spawn(acceptor))
            return
        try:
            theirs = self._family.expect(acceptor, lambda: self._kill(acceptor))
        except OSError:  # no descriptors are left for now
            self._later(acceptor, lambda: self._spawn(acceptor))
            return
        send(control, Spawn(acceptor.number, acceptor.column), theirs.fileno())
        theirs.close()

    def _kill(self, acceptor: Child) -> None:
        """Have an acceptor killed by its parent, from which no other process can take its pid."""
        if self.template.control is not None:
            send(self.template.control, Kill(acceptor.number))

    def spawned(self, message: Spawned) -> None:
        """Take note of an acceptor's birth."""
        if acceptor := self._acceptor(message.number):
            self._family.born(acceptor, message.pid)
            acceptor.parent = self.template.pid

    def died(self, message: Died) -> Child | None:
        """Take note of an acceptor's death and have it forked again; give which one it was."""
        acceptor = self._acceptor(message.number)
        if acceptor is None or acceptor.pid != message.pid:
            return None
        if not message.pid:
            acceptor.started = time.monotonic()  # it could not be forked: died at once
        self._bury(acceptor, message.status)
        if self.phase is Phase.SERVING:
            acceptor.restarts += 1
            self._later(acceptor, lambda: self._spawn(acceptor))
        return acceptor

    def _acceptor(self, number: int) -> Child | None:
        return self.acceptors[number - 1] if 0 < number <= len(self.acceptors) else None

    def _bury(self, acceptor: Child, status: int) -> None:
        self._family.dead(acceptor, status, expected=self.phase is Phase.DRAINING)
        self._columns.give_back(acceptor)

    def template_died(self, status: int) -> list[Child]:
        """Take note of the template's death, and so of all its acceptors'; give those that lived.

        A generation that serves has it forked again: it loads the same files anew.
        """
        lost = [each for each in self.acceptors if each.pid or each.control is not None]
        for acceptor in lost:
            self._bury(acceptor, -signal.SIGKILL)
        self._family.dead(self.template, status, expected=self.phase is Phase.DRAINING)
        self._alarm.stop()
        if self.phase is Phase.SERVING:
            self.template.restarts += 1
            self._later(self.template, self._fork)
        return lost

    def refused_again(self, problems: tuple[str, ...]) -> None:
        """Tell that files of a generation that served cannot be loaded any more."""
        for each in problems:
            self._log.emit(SystemFault("the template cannot load its files again", each))

    def drain(self) -> None:
        """Let the acceptors finish their handshakes, and accept no more."""
        self.phase = Phase.DRAINING
        for child in (*self.acceptors, self.template):
            if child.control is not None:
                send(child.control, Drain())
        late = self.config.timeouts.handshake + _LATE_SECONDS
        self._alarm.set(late, lambda: self.end("its handshake took too long"))

    def hurry(self, reason: str = "replaced by a newer configuration") -> None:
        """Give the handshakes in progress one second more: somebody waits for their end."""
        if not self._hurried:
            self._hurried = True
            self._alarm.set(_HURRY_SECONDS, lambda: self.end(reason))

    def end(self, reason: str) -> None:
        """End the handshakes in progress; a process that does not obey is killed."""
        for acceptor in self.acceptors:
            if acceptor.control is not None:
                send(acceptor.control, End(reason))
        self._alarm.set(_KILL_SECONDS, self.kill)

    def kill(self) -> None:
        """End the processes at once; the acceptors die with their template."""
        self.phase = Phase.DRAINING
        kill(self.template)
