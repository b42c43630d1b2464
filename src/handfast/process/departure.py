"""The end of a program that is started again: its connections go to the service manager's store.

In order, each step when the one before is done:

1. The listening sockets are stored. The manager is asked to say that it has done so: one that does
   not read gets no connection, and handfast drains as it does without a store.
2. The acceptors finish their handshakes, for a second.
3. If the store has no room for all connections, they go on until it has, as long as
   `drain-timeout` lets them.
4. The relays give their connections away, as in an upgrade. The supervisor takes the packets and
   looks into none; it stores the sockets, and writes the packets into a memfd (see `stowage`).
   What has not come after a second without any is ended, and what had no room.
5. The memfd is stored, the last of all. So whatever goes wrong before leaves sockets in the store
   that nobody can use: connections are lost, and none is in two places.

No relay has any of these sessions then, and none can get one back.
"""

from __future__ import annotations

import os
import time
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final

from handfast.errors import HandfastError
from handfast.handover import channel
from handfast.observe.events import Doubtful, Stowed, SystemFault
from handfast.process.child import Child
from handfast.process.family import kill
from handfast.process.messages import GiveAway, send
from handfast.process.storing import SOCKETS, Storing
from handfast.process.stowage import Door, Manifest
from handfast.process.upgrades import Measurer
from handfast.transport.alarm import Alarm

if TYPE_CHECKING:
    import socket

    from handfast.observe.status import Status
    from handfast.process.supervisor import Supervisor

BARRIER_SECONDS: Final = 3.0
"""How long the manager may take to say that it reads what it is told."""
STORED_SECONDS: Final = 30.0
"""How long it may take to say that it has stored everything: it compares each descriptor with all
that it has, so that ten thousand connections cost it some seconds."""
_LOOK_SECONDS: Final = 0.2
_QUIET_SECONDS: Final = 1.0
_KILL_SECONDS: Final = 1.0
_MARGIN_SECONDS: Final = 60.0
"""Beyond draining: some seconds for every ten thousand connections."""
_AT_ONCE: Final = 64
_REASON: Final = "handfast is started again"


class Phase(Enum):
    """How far it has come."""

    STAYING = "staying"
    CLOSING = "closing"
    WAITING = "waiting"
    GIVING = "giving"
    ENDING = "ending"
    STORED = "stored"


class Departure:
    """That of one supervisor."""

    def __init__(self, house: Supervisor) -> None:
        self._house = house
        self._alarm = Alarm(house.loop)
        self._phase = Phase.STAYING
        self._problem = ""
        self._is_small = False
        self._barrier = -1
        self._began = self._deadline = 0.0
        self._asked: set[Child] = set()
        self._channel: tuple[socket.socket, socket.socket] | None = None
        self._storing: Storing | None = None

    def begin(self) -> bool:
        """Begin, and give True; False where there is no store, or an upgrade is not over."""
        house = self._house
        if house.state != "serving" or not house.manager.capacity or house.upgrades.predecessors:
            return False
        if house.arrival.busy:
            house.arrival.then = self._begin_or_drain
            return True
        self._began = time.monotonic()
        try:
            self._storing = Storing(house.manager, self._tell)
            self._storing.store_doors(house.generations.listeners)
            self._await_manager(BARRIER_SECONDS)
        except (OSError, HandfastError) as error:
            self._tell(f"nothing can be stored: {error}")
            return False
        self._phase = Phase.CLOSING
        self._deadline = self._began + house.ending.close_doors(_MARGIN_SECONDS)
        self._storing.deadline = self._deadline + _MARGIN_SECONDS
        for each in house.generations:
            each.hurry(_REASON)
        house.ending.go_on()
        return True

    def _begin_or_drain(self) -> None:
        if not self.begin() and self._house.state != "draining":
            self._house.ending.drain()

    def _tell(self, problem: str) -> None:
        self._problem = self._problem or problem
        self._house.log.emit(SystemFault("the service manager's store", problem))

    # The manager

    def _await_manager(self, seconds: float) -> None:
        self._barrier = self._house.manager.barrier()
        self._house.loop.add_reader(self._barrier, self._answered)
        self._alarm.set(seconds, lambda: self._silent(seconds))

    def _answered(self) -> None:
        """The manager has done what it was told."""
        self._close_barrier()
        self._alarm.stop()
        self._house.ending.go_on()

    def _silent(self, seconds: float) -> None:
        self._close_barrier()
        self._tell(f"the service manager has not answered in {seconds:g} s")
        if self._phase is Phase.CLOSING:
            self._phase = Phase.STAYING
            self._house.ending.until(self._deadline)
        self._house.ending.go_on()

    def _close_barrier(self) -> None:
        self._house.loop.remove_reader(self._barrier)
        os.close(self._barrier)
        self._barrier = -1

    # The steps

    def go_on(self) -> bool:
        """Take the next step; the doors are closed. False when handfast drains instead."""
        storing = self._storing
        if self._phase is Phase.STAYING or storing is None:
            return False
        alive = any(each.pid for each in self._house.relays.children)
        if self._barrier >= 0:
            return True
        if self._phase is Phase.CLOSING:
            self._phase = Phase.WAITING
            self._wait_for_room(storing)
        elif self._phase in (Phase.GIVING, Phase.ENDING) and not alive:
            self._finish(storing)
        elif self._phase is Phase.STORED:
            self._end(storing)
        return True

    def _wait_for_room(self, storing: Storing) -> None:
        """Let connections go on that there is no room for, as long as they may."""
        count = self._house.census.connections()
        fits = count * SOCKETS <= storing.room
        if not fits and not self._is_small:
            self._is_small = True
            most = self._house.manager.capacity - storing.room + count * SOCKETS
            text = f"the service manager's store has no room for {count} connections; "
            self._house.log.emit(Doubtful(f"{text}FileDescriptorStoreMax={most} would do"))
        if fits or time.monotonic() >= self._deadline:
            self._give(storing, fits=fits)
        else:
            self._house.loop.call_later(_LOOK_SECONDS, lambda: self._wait_for_room(storing))

    def _give(self, storing: Storing, *, fits: bool) -> None:
        self._phase = Phase.GIVING
        self._channel = channel.pair()
        receiver = self._channel[1]
        self._house.loop.add_reader(receiver.fileno(), lambda: self._readable(receiver))
        self._alarm.set(_QUIET_SECONDS, self._end_rest)
        if fits:
            for child in self._house.relays.children:
                self._order(child, None)
            if not self._house.relays.drain():
                self._finish(storing)
        else:
            self._problem = self._problem or "the store is too small"
            share = partial(self._share_out, storing.room // SOCKETS)
            self._house.ask(Measurer(share))

    def _order(self, child: Child, most: int | None) -> None:
        if child.control is not None and self._channel is not None:
            send(child.control, GiveAway(most), self._channel[0].fileno())
            self._asked.add(child)

    def _share_out(self, left: int, status: Status) -> None:
        """Have the relays give as many as there is room for; the first ones give all."""
        for child in self._house.relays.children:
            for each in status.processes:
                if each.current and each.name == child.worker_id and left:
                    share = min(left, each.counters.get("active", 0))
                    left -= share
                    self._order(child, share)
        if not self._asked:
            self._end_rest()

    def given(self, child: Child) -> None:
        """Take note that a relay has given what it was told to, or has died."""
        self._asked.discard(child)
        if self._phase is Phase.GIVING and not self._asked:
            self._end_rest()

    def _end_rest(self) -> None:
        """End what is left in the relays, in order."""
        storing = self._storing
        if self._phase is not Phase.GIVING or storing is None:
            return
        self._phase = Phase.ENDING
        storing.lost += self._house.census.connections()
        self._house.relays.end(_REASON)
        self._alarm.set(_KILL_SECONDS, self._kill)
        if not self._house.relays.drain():
            self._finish(storing)

    def _kill(self) -> None:
        for child in self._house.relays.children:
            kill(child)

    def _readable(self, receiver: socket.socket) -> None:
        storing = self._storing
        if storing is None:
            return
        for _ in range(_AT_ONCE):
            if not storing.take(receiver):
                break
        # No relay stays as long as it likes by sending one packet after the other.
        if self._phase is Phase.GIVING and time.monotonic() < storing.deadline:
            self._alarm.set(_QUIET_SECONDS, self._end_rest)

    # The end

    def _finish(self, storing: Storing) -> None:
        """Store the rest, and the memfd behind it."""
        self._alarm.stop()
        self._phase = Phase.STORED
        # What acceptors gave at last waits in the relays' own channels.
        ends = [receiver for _, receiver in self._house.relays.sessions]
        for receiver in (*([self._channel[1]] if self._channel else ()), *ends):
            while storing.take(receiver):
                pass
        storing.flush()
        try:
            storing.finish(self._manifest)
            self._await_manager(STORED_SECONDS)
        except (OSError, HandfastError) as error:
            self._tell(str(error))
            self._end(storing)

    def _manifest(self, doors: tuple[Door, ...], numbers: int, packets: int) -> Manifest:
        house = self._house
        return Manifest(
            program=house.upgrades.program,
            began=self._began,
            started=house.overview.started,
            doors=doors,
            numbers=numbers,
            generation=house.generations.number,
            packets=packets,
            counts=house.gatherings.ended,
            reloads=house.generations.reloads,
        )

    def _end(self, storing: Storing) -> None:
        self._house.log.emit(
            Stowed(
                connections=storing.kept,
                ended=storing.lost,
                descriptors=storing.count,
                duration_ms=round((time.monotonic() - self._began) * 1000, 3),
                error_msg=self._problem,
            )
        )
        self._house.loop.stop()
