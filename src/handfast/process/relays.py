"""The relays, which stay as long as handfast does, and the plan that they go by."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from handfast.handover import channel
from handfast.process.child import Child, Kind
from handfast.process.columns import Columns
from handfast.process.family import Family
from handfast.process.messages import Configure, Drain, End, Take, refuse_descriptors, send
from handfast.relay import question
from handfast.transport.loop import Loop

_NO_COLUMN_SECONDS: Final = 0.1

Life = Callable[[Child, socket.socket, Sequence[socket.socket], socket.socket], int]
"""A relay's life: its place, its control socket, its channels of sessions, its channel of names."""
Pair = tuple[socket.socket, socket.socket]


class Relays:
    """Forks the relays, keeps their channels, and tells them of new plans.

    Both ends of every channel stay open here: what is in a queue when a relay dies is taken by the
    one that replaces it. So are the channels of the version before (`inherited`): more of them than
    relays are shared out. While relays of that version are there, these take nothing until `take`.
    """

    def __init__(
        self,
        count: int,
        family: Family,
        columns: Columns,
        loop: Loop,
        life: Life,
        inherited: Sequence[Pair] = (),
    ) -> None:
        self.children = tuple(Child(Kind.RELAY, number + 1) for number in range(count))
        self.sessions = (*inherited, *(channel.pair() for _ in range(count - len(inherited))))
        self._names = tuple(question.pair() for _ in self.children)
        for _, answering in self._names:
            refuse_descriptors(answering)
        self._family = family
        self._columns = columns
        self._loop = loop
        self._life = life
        self._plan: tuple[int, int] | None = None
        self._taking = not inherited
        self._awaited: set[Child] = set()
        self._configured: Callable[[], None] | None = None
        self._draining = False

    @property
    def senders(self) -> tuple[socket.socket, ...]:
        """The ends that the acceptors write sessions to."""
        return tuple(sender for sender, _ in self.sessions[: len(self.children)])

    @property
    def resolver_ends(self) -> tuple[socket.socket, ...]:
        """The ends of the channels of names that are for the resolver."""
        return tuple(end for _, end in self._names)

    @property
    def ready(self) -> bool:
        """Tell whether all of them carry connections."""
        return all(each.ready for each in self.children)

    def start(self) -> None:
        """Fork all of them; each waits for its plan."""
        for child in self.children:
            self._fork(child)

    def _fork(self, child: Child) -> None:
        if self._draining or child.pid:
            return
        child.column = self._columns.take()
        if child.column < 0:  # acceptors that end hold all of them for a moment
            self._loop.call_later(_NO_COLUMN_SECONDS, lambda: self._fork(child))
            return
        count = len(self.children)
        receivers = [receiver for _, receiver in self.sessions[child.number - 1 :: count]]
        names = self._names[child.number - 1][0]
        if not self._family.fork(
            child,
            lambda control: (
                lambda: self._life(child, control, receivers, names),
                {names.fileno(), *(each.fileno() for each in receivers)},
            ),
        ):
            self._columns.give_back(child)
            self._loop.call_later(child.delay(time.monotonic()), lambda: self._fork(child))
        elif self._plan is not None:
            self._tell(child, self._plan)

    def configure(self, generation: int, plan: int, configured: Callable[[], None]) -> None:
        """Have all of them go by a plan (a descriptor), and call back when they do.

        One that dies meanwhile is not waited for: its successor begins with that plan.
        """
        self._plan = generation, plan
        self._configured = configured
        self._awaited = {each for each in self.children if each.pid}
        for child in self._awaited:
            self._tell(child, self._plan)
        self._proceed()

    def _tell(self, child: Child, plan: tuple[int, int]) -> None:
        generation, descriptor = plan
        if child.control is not None:
            send(child.control, Configure(generation), descriptor)
            if self._taking:
                send(child.control, Take())

    def take(self) -> None:
        """Have all of them take sessions in from now on, those forked later too."""
        self._taking = True
        for child in self.children:
            if child.control is not None:
                send(child.control, Take())

    def confirmed(self, child: Child, generation: int) -> None:
        """Take note that a relay goes by a plan."""
        if self._plan is not None and generation == self._plan[0]:
            self._awaited.discard(child)
            self._proceed()

    def give_up_waiting(self) -> list[Child]:
        """Go on without those that have not answered; give them."""
        silent, self._awaited = list(self._awaited), set()
        self._proceed()
        return silent

    def _proceed(self) -> None:
        configured = self._configured
        if configured is not None and not self._awaited:
            self._configured = None
            configured()

    def died(self, child: Child, status: int) -> None:
        """Take note of a death, and fork another in its place."""
        self._family.dead(child, status, expected=self._draining)
        self._columns.give_back(child)
        if not self._draining:
            child.restarts += 1
            self._loop.call_later(child.delay(time.monotonic()), lambda: self._fork(child))
        self._awaited.discard(child)
        self._proceed()

    def drain(self) -> bool:
        """Let them finish their connections; False when none is left."""
        self._draining = True
        alive = [each for each in self.children if each.pid]
        for child in alive:
            if child.control is not None:
                send(child.control, Drain())
        return bool(alive)

    def end(self, reason: str) -> None:
        """End the connections that are left."""
        for child in self.children:
            if child.control is not None:
                send(child.control, End(reason))

    def close(self) -> None:
        """Close the channels."""
        for pair in (*self.sessions, *self._names):
            for sock in pair:
                sock.close()
