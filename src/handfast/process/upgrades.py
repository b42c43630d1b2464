"""The upgrades of one supervisor: that by which it came to its place, and that to the next program.

One at a time. Who asks for one while it is under way waits for the same, and is answered by the
program that serves in the end.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from handfast import __version__
from handfast.errors import ConfigError, HandfastError
from handfast.observe.counters import BOUNDS, Histogram
from handfast.observe.events import SystemFault, Upgrade
from handfast.observe.log import Log
from handfast.observe.status import State, Status
from handfast.process.child import Child
from handfast.process.commands import Answer, Upgraded
from handfast.process.control import ControlServer, Pending
from handfast.process.family import Family
from handfast.process.inheritance import Inheritance, Program, Waiter
from handfast.process.messages import FromChild
from handfast.process.predecessors import Predecessors
from handfast.process.succession import Succession, can_go_back, go_back
from handfast.transport.loop import Loop

UPGRADE: Final = "upgrade"
RELOAD: Final = "reload"
_LOOK_SECONDS: Final = 0.1
_MOST_LOOKS: Final = 30


class Inherited(msgspec.Struct, frozen=True):
    """What the program before left, the memfd with it, and why the next did not come up, if so."""

    inheritance: Inheritance
    left: int
    returned: str = ""


class House(Protocol):
    """Whose upgrades these are: the supervisor."""

    @property
    def state(self) -> State:
        """What it does."""

    def bequeath(self, successor: Program) -> Inheritance:
        """Give all that the next program is to have."""

    def is_quiet(self) -> bool:
        """Tell whether nothing is half done."""

    def tell_manager(self) -> None:
        """Tell the service manager that whatever was begun is over."""

    def ask(self, client: Measurer) -> None:
        """Ask the workers for what they have counted, for `client`."""

    def stalls(self) -> Histogram:
        """Give how long connections stood still that came to the relays of this program."""

    def succeeded(self) -> None:
        """The processes of the program before have gone."""

    def retreat(self) -> None:
        """End our own processes, which do not come up, and keep every socket."""

    def give_up(self, error: HandfastError) -> None:
        """End, because nobody serves any more."""


class Measurer:
    """Takes the status once, for a function."""

    def __init__(self, take: Callable[[Status], None]) -> None:
        self._take = take

    def answer(self, answer: Answer) -> None:
        """Take the answer."""
        if answer.status is not None:
            self._take(answer.status)

    def close(self) -> None:
        """Nothing comes after it."""


class Upgrades:
    """Both of them. `inherited` is for a `program` that has taken the place of another."""

    def __init__(
        self,
        house: House,
        program: Program,
        inherited: Inherited | None,
        family: Family,
        loop: Loop,
        log: Log,
    ) -> None:
        self.program = program
        self._house = house
        self._inherited = inherited
        self._family = family
        self._loop = loop
        self._log = log
        self._succession: Succession | None = None
        self._waiting: list[tuple[Pending, str]] = []
        self._began = 0.0
        self._stranded = False
        self._tries = 0
        relatives = inherited.inheritance.relatives if inherited else ()
        self.predecessors = Predecessors(relatives, family, loop, self._gone)

    def await_answers(self, server: ControlServer) -> None:
        """Take over those who wait for an answer of the program before."""
        if self._inherited is None:
            return
        for each in self._inherited.inheritance.waiters:
            sock = socket.socket(fileno=os.dup(each.descriptor))
            self._waiting.append((server.adopt(sock), each.command))

    @property
    def waiters(self) -> tuple[Waiter, ...]:
        """Those that wait for an answer still, for the program that follows."""
        places = ((each.sock.fileno(), command) for each, command in self._waiting)
        return tuple(Waiter(place, command) for place, command in places if place >= 0)

    @property
    def waiting(self) -> int:
        """How many wait for an answer."""
        return len(self._waiting)

    @property
    def is_stranded(self) -> bool:
        """Whether this program has no processes, and those of the one before serve."""
        return self._stranded

    @property
    def began(self) -> float:
        """When the upgrade that is under way began, by CLOCK_MONOTONIC."""
        return self._began

    @property
    def children(self) -> list[Child]:
        """The processes of the program before, and the proof of the next."""
        proof = self._succession.child if self._succession else None
        return [*self.predecessors.children, *([proof] if proof and proof.pid else ())]

    @property
    def is_under_way(self) -> bool:
        """Whether one of them is not over."""
        return self._succession is not None or (bool(self.predecessors) and not self._stranded)

    # To the next program

    def order(self, client: Pending | None, command: str, python: str = "") -> None:
        """Begin one, or wait for the one that is under way, unless it is to another program."""
        if self.is_under_way and python and client is not None:
            client.answer(Answer("an upgrade is under way; try again when it is over"))
            client.close()
            return
        if client is not None:
            self._waiting.append((client, command))
        if self.is_under_way:
            return
        self._began = time.monotonic()
        self._succession = Succession(
            Program("", python or self.program.python, self.program.arguments),
            self._house.bequeath,
            self._house.is_quiet,
            self._refused,
            self._family,
            self._loop,
            self._log,
        )
        self._succession.begin()

    def _refused(self, error: HandfastError) -> None:
        self._succession = None
        self._log.emit(
            Upgrade(
                outcome="refused",
                from_version=__version__,
                to_version="",
                duration_ms=_ms(self._began),
                error_msg=str(error),
            )
        )
        self._answer(Answer(str(error), wrong_configuration=isinstance(error, ConfigError)))
        self._house.tell_manager()

    def _answer(self, answer: Answer) -> None:
        waiting, self._waiting = self._waiting, []
        for client, command in waiting:
            client.answer(
                answer if command == UPGRADE else Answer(answer.error, answer.wrong_configuration)
            )
            client.close()

    def refuse(self, reason: str) -> None:
        """Answer those who wait, and give up what was begun: handfast is stopping."""
        if self._succession is not None:
            self._succession.cancel()
        self._answer(Answer(reason))

    # From the program before

    def heard(self, child: Child, message: FromChild) -> list[Child]:
        """Take a message of one of `children`; give those whose death it tells."""
        if child in self.predecessors:
            return self.predecessors.heard(child, message)
        if self._succession is not None:
            self._succession.heard(message)
        return []

    def buried(self, child: Child, status: int) -> list[Child]:
        """Take note of the death of one of `children`; give those that died of it."""
        if child in self.predecessors:
            return self.predecessors.buried(child, status)
        if self._succession is not None:
            self._succession.buried(status)
        return []

    def cannot_start(self, error: HandfastError) -> bool:
        """Have the program before serve, because this one cannot; False when there is none.

        It takes its place back where it is still there. Else its processes go on, with nobody to
        replace one that dies, until the next upgrade works.
        """
        inherited = self._inherited
        if inherited is None or not self.predecessors:
            return False
        reason = str(error)
        self._log.emit(SystemFault("the new processes do not come up", reason))
        self._house.retreat()
        if can_go_back(inherited.inheritance, inherited.returned):
            self._log.flush()
            failure = go_back(inherited.inheritance, inherited.left, _one_line(reason))
            reason = f"{reason}; and {failure}"
        self._stranded = True
        text = f"{reason}; the processes of the version before serve on, upgrade again soon"
        self._tell("refused", text)
        self._answer(Answer(text, wrong_configuration=isinstance(error, ConfigError)))
        self._house.tell_manager()
        return True

    def came_up(self, channels: tuple[socket.socket, ...], handshake_seconds: float) -> None:
        """Have the processes of the program before give way, for ours serve."""
        if self.predecessors:
            self.predecessors.give_way(channels, handshake_seconds)

    def _gone(self) -> None:
        """All processes of the program before have ended: find out how that went."""
        if self._house.state == "draining":
            pass  # it is the end of all
        elif self._stranded:
            self._house.give_up(HandfastError("the last process of the version before has ended"))
        else:
            self._house.ask(Measurer(self._finish))

    def _finish(self, status: Status) -> None:
        if _missing(status, self.predecessors.given) and self._tries < _MOST_LOOKS:
            self._tries += 1  # some are in the channels still
            self._loop.call_later(_LOOK_SECONDS, self._gone)
            return
        inherited, self._inherited = self._inherited, None
        if inherited is None or self._house.state == "draining":
            return
        self._house.succeeded()
        inheritance = inherited.inheritance
        for descriptor in {inherited.left, *(each.descriptor for each in inheritance.waiters)}:
            os.close(descriptor)
        for relative in inheritance.relatives:
            if relative.control >= 0:
                os.close(relative.control)
        upgraded = self._measure(inheritance, status)
        if inherited.returned:
            text = f"{inheritance.program.version} did not come up, {__version__} serves again: "
            text += inherited.returned
            self._tell("returned", text, inheritance, upgraded)
            self._answer(Answer(text))
        else:
            self._tell("ok", "", inheritance, upgraded)
            self._answer(Answer(upgraded=upgraded))
        self._house.tell_manager()

    def _measure(self, inheritance: Inheritance, status: Status) -> Upgraded:
        longest = (each.value for each in status.gauges if each.name == "longest_stall_seconds")
        return Upgraded(
            before=inheritance.program.version,
            after=__version__,
            moved=_taken(status),
            waiting=_missing(status, self.predecessors.given),
            longest_stall=max(longest, default=0.0),
            p99_stall=_quantile(self._house.stalls(), 0.99),
            seconds=round(time.monotonic() - inheritance.began, 3),
            died=tuple(self.predecessors.died),
        )

    def _tell(
        self,
        outcome: str,
        text: str,
        inheritance: Inheritance | None = None,
        upgraded: Upgraded | None = None,
    ) -> None:
        inheritance = inheritance or (self._inherited.inheritance if self._inherited else None)
        if inheritance is None:
            return
        self._log.emit(
            Upgrade(
                outcome=outcome,  # type: ignore[arg-type]  # one of the event's three
                from_version=inheritance.program.version,
                to_version=__version__,
                connections_moved=upgraded.moved if upgraded else None,
                longest_stall_ms=round(upgraded.longest_stall * 1000, 3) if upgraded else None,
                duration_ms=_ms(inheritance.began),
                error_msg=text,
            )
        )


def _taken(status: Status) -> int:
    """Count the connections that the relays of this program have taken over."""
    relays = (each for each in status.processes if each.current and each.role == "relay")
    return sum(each.counters.get("moved", 0) for each in relays)


def _missing(status: Status, given: int) -> int:
    """Count what was given and not taken; unknown, so 0, where a taker has died."""
    if any(each.restarts for each in status.processes if each.role == "relay"):
        return 0
    return max(0, given - _taken(status))


def _ms(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 3)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:1000]


def _quantile(histogram: Histogram, share: float) -> float:
    """Give a bound that so large a share is below; the last one where it may be more."""
    wanted = share * sum(histogram.counts)
    seen = 0
    for bound, count in zip(BOUNDS, histogram.counts, strict=False):
        seen += count
        if seen >= wanted:
            return bound
    return BOUNDS[-1]
