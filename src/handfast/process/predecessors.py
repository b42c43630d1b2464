"""The processes of the program before, which serve until ours do, and then give way.

Nothing changes for them until then: should ours not come up, they are as they were. In order:

1. Ours accept. Then theirs accept no more, and finish the handshakes that they are in; what comes
   of those goes to our relays, by the channels that they know.
2. Their relays give every connection to ours, and end.
3. Then the resolver and the demo end, which those may have needed.

One that dies on the way takes with it what it holds, and the others go on.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Final

from handfast.process.child import Child, Kind
from handfast.process.family import Family, cause, kill
from handfast.process.inheritance import Relative
from handfast.process.linux import is_child
from handfast.process.messages import (
    MOST_DESCRIPTORS,
    Died,
    Drain,
    End,
    FromChild,
    GiveAway,
    GivenAway,
    send,
)
from handfast.transport.alarm import Alarm
from handfast.transport.loop import Loop

_LATE_SECONDS: Final = 5.0
"""How long after the handshakes' own deadline all of them have to be over."""
_KILL_SECONDS: Final = 1.0


class Predecessors:
    """All of them; `gone` is called when the last has ended."""

    def __init__(
        self, relatives: Iterable[Relative], family: Family, loop: Loop, gone: Callable[[], None]
    ) -> None:
        self.given = 0
        self.died: list[str] = []
        self._family = family
        self._loop = loop
        self._gone = gone
        self._alarm = Alarm(loop)
        self._giving_way = False
        self._ending = False
        self._alive: dict[Child, Kind] = {}
        for each in relatives:
            self._adopt(each)

    def _adopt(self, relative: Relative) -> None:
        child = Child(relative.kind, relative.number)
        child.pid, child.started, child.ready = relative.pid, relative.started, True
        child.parent, child.column = relative.parent, relative.column
        own = relative.kind is not Kind.ACCEPTOR  # the template's, which will tell of its death
        if own and not is_child(relative.pid):
            return  # it was buried by a program that has come and gone since
        # A copy, for what was inherited stays open until this is over.
        copy = os.dup(relative.control) if relative.control >= 0 else -1
        control = socket.socket(fileno=copy) if copy >= 0 else None
        self._family.adopt(child, control, own=own)
        self._alive[child] = relative.kind

    def __contains__(self, child: Child) -> bool:
        return child in self._alive

    @property
    def serve(self) -> bool:
        """Whether they do the work still, for ours have not come up."""
        return bool(self._alive) and not self._giving_way

    def __bool__(self) -> bool:
        """Tell whether any of them is left."""
        return bool(self._alive)

    @property
    def children(self) -> list[Child]:
        """Those that are left."""
        return list(self._alive)

    def columns(self, *, known: bool) -> list[int]:
        """Give their columns of the census; where that is not `known` here, they have none."""
        if not known:
            for each in self._alive:
                each.column = -1
        return [each.column for each in self._alive]

    def _of(self, *kinds: Kind) -> list[Child]:
        return [child for child, kind in self._alive.items() if kind in kinds]

    def give_way(self, channels: tuple[socket.socket, ...], handshake_seconds: float) -> None:
        """Have them give way to ours, whose channels these are (the ends to write to)."""
        self._giving_way = True
        self._close_doors()
        self._alarm.set(handshake_seconds + _LATE_SECONDS, self._hurry)
        for turn, child in enumerate(self._of(Kind.RELAY)):
            # Each begins with another channel, so that all of ours get as much.
            some = channels[turn % len(channels) :] + channels[: turn % len(channels)]
            descriptors = [each.fileno() for each in some[:MOST_DESCRIPTORS]]
            self._order(child, GiveAway(), *descriptors)
        self._go_on()

    def _hurry(self) -> None:
        """End the handshakes that take too long; a process that does not obey is killed."""
        for child in self._of(Kind.ACCEPTOR):
            self._order(child, End("its handshake took too long"))
        self._alarm.set(_KILL_SECONDS, self._kill_templates)

    def _kill_templates(self) -> None:
        for child in self._of(Kind.TEMPLATE):
            kill(child)

    def drain(self) -> None:
        """Accept no more, and finish what there is: handfast is stopping."""
        if self._giving_way:
            return  # that comes to the same
        self._ending = True
        self._close_doors()
        self._go_on()

    def _close_doors(self) -> None:
        """Let no more in: handshakes go on to their end, and what is no door is not needed."""
        for child in self._of(Kind.ACCEPTOR, Kind.TEMPLATE):
            self._order(child, Drain())
        for child in self._of(Kind.MONITOR):
            self._order(child, End("another has taken its place"))

    def end(self, reason: str) -> None:
        """End the connections that are left."""
        for child in self._of(Kind.RELAY):
            self._order(child, End(reason))

    @staticmethod
    def _order(child: Child, order: Drain | End | GiveAway, *descriptors: int) -> None:
        if child.control is not None:
            send(child.control, order, *descriptors)

    def heard(self, child: Child, message: FromChild) -> list[Child]:
        """Take a message of one of them; give those whose death it tells."""
        if isinstance(message, GivenAway):
            self.given += message.count
        elif isinstance(message, Died) and child.kind is Kind.TEMPLATE:
            dead = [each for each in self._of(Kind.ACCEPTOR) if each.pid == message.pid]
            for each in dead:
                self._bury(each, message.status)
            return dead
        return []

    def buried(self, child: Child, status: int) -> list[Child]:
        """Take note of a death; give those that died of it, with the one itself."""
        of_it = [each for each in self._of(Kind.ACCEPTOR) if each.parent == child.pid]
        dead = [child, *(of_it if child.kind is Kind.TEMPLATE else ())]
        for each in dead:
            self._bury(each, status if each is child else -signal.SIGKILL)
        self._go_on()
        return dead

    def _bury(self, child: Child, status: int) -> None:
        expected = self._giving_way or self._ending
        if status or not expected:
            self.died.append(f"{child.name} {cause(status)}")
        self._family.dead(child, status, expected=expected)
        self._alive.pop(child, None)

    def _go_on(self) -> None:
        """Take the next step when the one before is done."""
        if not self._alive:
            self._alarm.stop()
            self._gone()
            return
        if self._of(Kind.TEMPLATE, Kind.ACCEPTOR) or not (self._giving_way or self._ending):
            return
        relays = self._of(Kind.RELAY)
        for child in relays if self._ending else ():
            self._order(child, Drain())
        for child in () if relays else self._of(Kind.RESOLVER, Kind.DEMO):
            self._order(child, Drain())
