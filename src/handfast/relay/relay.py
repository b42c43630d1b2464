"""A relay: takes sessions from the hand-over channel and carries their bytes.

It holds session values and the targets' sockets; no private key and no listening socket. The
buffers here are the only ones: every connection of the process uses them, one call at a time.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from handfast.config import Timeouts
from handfast.handover.message import Burden, Established, Handover
from handfast.observe.counters import SESSIONS, Counters, Gauge
from handfast.observe.log import Log
from handfast.relay.connection import Connection
from handfast.relay.generation import Generation
from handfast.relay.intake import Intake, ceiling
from handfast.relay.moving import Transport
from handfast.relay.plan import Plan
from handfast.relay.removal import Removal
from handfast.relay.resolver import Resolver
from handfast.relay.review import Review
from handfast.relay.targets import Targets
from handfast.relay.transfer import carried, take
from handfast.tls.alerts import Alert
from handfast.tls.session import Session
from handfast.tls.writer import RecordWriter, room_for
from handfast.transport.buffers import untouched
from handfast.transport.census import Column
from handfast.transport.deadlines import Deadlines
from handfast.transport.kernel import KernelWriter
from handfast.transport.lingering import take_leave
from handfast.transport.loop import Loop
from handfast.transport.pipes import Pipes
from handfast.transport.plain import reset

READ_SIZE: Final = 8 << 14
"""Bytes of one read: eight records' worth, so that one `send` carries up to eight."""


WARM_LIMIT: Final = 512
"""Connections that may keep their derived keys, 5 KB each, without having been used just now."""
WARM_SECONDS: Final = 0.25
_LINGER_CHECK_SECONDS: Final = 0.1


class Relay:
    """The connections of one relay process. `column` is where they are counted for all to see.

    It takes no sessions in before `intake.start`.
    """

    def __init__(
        self,
        loop: Loop,
        receivers: Sequence[socket.socket],
        resolver: Resolver,
        plan: Plan,
        column: Column,
        log: Log,
        ended: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.log = log
        self.resolver = resolver
        self.counters = Counters()
        self.counters.refresh = self._refresh
        self.deadlines = Deadlines(loop)
        self.targets = Targets(loop.time, log.emit)
        # One byte more than is read: sealing puts the content type behind the last.
        size = READ_SIZE + (1 << 15)
        self.output: Final = untouched(room_for(size))
        # What was opened into `output` is sealed again into the room that it was read into.
        self.resealed: Final = untouched(room_for(len(self.output)))
        self.buffer: Final = self.resealed[:size]
        self.chunk: Final = self.buffer[:READ_SIZE]
        self.connections: Final[set[Connection]] = set()
        self.pipes: Final = Pipes(ceiling())
        self._warm: OrderedDict[Connection, None] = OrderedDict()  # the longest so first
        self._bytes = [0, 0]  # of connections that have ended: from clients, and to them
        self.column: Final = column
        self._draining = False
        self._ended = ended
        self._review: Review | None = None
        self._removal: Removal | None = None
        self.generation = Generation(plan)
        self.targets.configure(self.generation.services(), plan.relays)
        self.intake = Intake(loop, receivers, self._adopt, self._end_if_drained, log)

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts of the generation."""
        return self.generation.plan.timeouts

    def configure(self, plan: Plan) -> None:
        """Go by this plan from now on; live connections that it does not allow are ended soon."""
        settled = self._is_settled
        if self._review is not None:
            self._review.cancel()
        self.generation = Generation(plan, self.generation, settled=settled)
        self.targets.configure(self.generation.services(), plan.relays)
        self._review = Review(self, self.connections)

    def _adopt(self, handover: Handover, descriptors: list[int]) -> None:
        session = handover.session
        listener = self.generation.listeners.get(handover.listener)
        if listener is None:
            self._turn_away(handover, descriptors)
            return
        # Whoever accepted it made it non-blocking, a property of the open file: no call here.
        client = socket.socket(listener.plan.family, socket.SOCK_STREAM, 0, descriptors[0])
        self.counters.active += 1
        connection = Connection(self, listener.plan, client, handover)
        self.connections.add(connection)
        if isinstance(session, Established):
            self._take(connection, handover.generation, session, descriptors[1])
            return
        self.counters.relayed += 1
        connection.meet(session)
        if (
            handover.generation != self.generation.plan.generation
            and not connection.is_passed_through
        ):
            decision = self.generation.decide(
                handover.listener, connection.certificates, generation=handover.generation
            )
            if not decision.allowed:
                connection.deny(decision)
                return
        connection.start(handover, session)

    def _take(
        self, connection: Connection, generation: int, session: Established, target: int
    ) -> None:
        """Go on with a connection that another relay has given away."""
        stall = time.monotonic() - session.detached
        self.counters.take(stall)
        for index, count in enumerate(carried(session)):
            self._bytes[index] -= count  # they were counted there
        take(connection, session, socket.socket(fileno=target))
        if generation != self.generation.plan.generation and connection in self.connections:
            if self._review is None or self._review.done:
                self._review = Review(self, ())
            self._review.add(connection, generation)

    def _turn_away(self, handover: Handover, descriptors: list[int]) -> None:
        """End a connection whose listener was taken out of the configuration on its way here."""
        self.intake.refuse(f"listener {handover.listener} is no longer configured")
        client, *target = (socket.socket(fileno=each) for each in descriptors)
        for sock in target:
            reset(sock)
        session = _writable_session(handover.session)
        if session is None:
            reset(client)
        else:
            take_leave(self.loop, self.deadlines, client, _farewell(client, session))

    def warm_up(self, connection: Connection) -> None:
        """Let a connection derive its keys, and take them from those that were used long ago.

        Two of the oldest are looked at each time, so that their number goes down again too.
        """
        connection.warm = True
        warm = self._warm
        warm[connection] = None
        for _ in range(2):
            if len(warm) <= WARM_LIMIT:
                return
            oldest = next(iter(warm))
            if connection.touched - oldest.touched < WARM_SECONDS:
                warm.move_to_end(oldest)
            else:
                del warm[oldest]
                oldest.park()

    def forget(self, connection: Connection) -> None:
        """Take a connection that has ended out of the books."""
        self._strike(connection)
        self.column.leave(connection.place)
        self._end_if_drained()

    def part_with(self, connection: Connection) -> None:
        """Take a connection out of the books that goes to another relay, but for the census."""
        self.deadlines.drop(connection)
        if connection.target_state is not None:
            connection.target_state.release()
        self._strike(connection)

    def _strike(self, connection: Connection) -> None:
        self.counters.active -= 1
        bytes_in, bytes_out = connection.counts()
        self._bytes[0] += bytes_in
        self._bytes[1] += bytes_out
        self.connections.discard(connection)
        self._warm.pop(connection, None)

    def is_done(self) -> bool:
        """Tell whether the relay takes nothing in any more and has no connection left."""
        return self._draining and self.intake.drained and not self.connections

    def _end_if_drained(self) -> None:
        if self._removal is None and self.is_done():
            self._ended()

    @property
    def _is_settled(self) -> bool:
        """Whether every connection may be here by the generation at hand."""
        return self._review is None or self._review.done

    @property
    def approval(self) -> int:
        """The generation by which every connection may be here; 0 while some are unchecked."""
        return self.generation.plan.generation if self._is_settled else 0

    def give_away(
        self, channels: list[socket.socket], most: int | None, removed: Callable[[int], None]
    ) -> None:
        """Give connections to the relays behind these channels: see `Removal`.

        Where all of them go (`most` None), no more are taken in, and the relay ends behind them.
        """
        if most is None:
            self._draining = True
            self.intake.stop()
        then = partial(self._removed, removed)
        self._removal = Removal(self, channels, most, then, self._removal)

    def _removed(self, removed: Callable[[int], None], count: int) -> None:
        self._removal = None
        removed(count)
        self._end_when_alone()

    def _end_when_alone(self) -> None:
        """End when it is done, and those that linger have gone."""
        if self.is_done() and len(self.deadlines):
            self.loop.call_later(_LINGER_CHECK_SECONDS, self._end_when_alone)
        else:
            self._end_if_drained()

    def _refresh(self) -> None:
        """Bring up to date what is counted when it is asked for."""
        counters = self.counters
        counters.bytes_in, counters.bytes_out = self._bytes
        homes = dict.fromkeys(Transport, 0)
        for connection in self.connections:
            if (home := connection.transport) is not None:
                homes[home] += 1
            bytes_in, bytes_out = connection.counts()
            counters.bytes_in += bytes_in
            counters.bytes_out += bytes_out
        counters.gauges = (
            Gauge("longest_stall_seconds", (), counters.longest_stall),
            *(
                Gauge(SESSIONS, (("transport", home.value),), count)
                for home, count in homes.items()
            ),
            *(
                Gauge(name, (("target", str(state.address)),), value)
                for state in self.targets.states()
                for name, value in (("target_up", state.up), ("target_connections", state.active))
            ),
        )

    def drain(self) -> None:
        """Take what is in the channel and no more; the relay ends with its last connection.

        Every acceptor has ended when this is called, so nothing comes after it.
        """
        if self._draining:
            return
        self._draining = True
        self.intake.drain()

    def end_all(self, reason: str) -> None:
        """End every connection, because the time to drain is over."""
        for connection in list(self.connections):
            connection.end(reason)


def _writable_session(burden: Burden) -> Session | None:
    """Give the client's session if something can still be sealed for it."""
    session: Burden | None = burden
    if isinstance(burden, Established):
        session = burden.client if burden.to_client.pending is None else None
    if isinstance(session, Session) and not session.write.closed:
        return session
    return None


def _farewell(client: socket.socket, session: Session) -> bytes:
    """Give the alert for a client that has no place here; where the kernel seals, it is sent."""
    if session.write.in_kernel:
        with contextlib.suppress(OSError):  # then there is nobody to tell
            KernelWriter(client, session.suite, session.write, 0).alert(Alert.ACCESS_DENIED)
        sealed = b""
    else:
        writer = RecordWriter(session)
        sealed = session.unsent + writer.alert(Alert.ACCESS_DENIED)
        writer.forget()
    session.wipe()
    return sealed
