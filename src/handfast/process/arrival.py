"""The beginning of a program that is started again: its connections come from the manager's store.

The state is read before anything else: listeners keep their sockets and their numbers, the
generations are counted on, and so is everything else. Until all of it serves, nothing changes in
the store: should handfast not come up, the next try finds everything there. In order, then:

1. The manager is told to forget it all, the state first, and to say when it has. If it does not say
   so, the connections are closed: another start could bring them a second time, and two that seal
   with one key break the cipher.
2. Every packet goes to a relay with its sockets, and is nowhere else from then on. The relays check
   every client by the configuration as it is now, because the generation is another.

So a crash before the first step loses nothing, one behind it loses what it would lose at any time,
and no session is ever in two places. A state that cannot be read is forgotten with all that
belongs to it, and handfast starts as if there were none.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from handfast.errors import HandfastError
from handfast.handover import channel
from handfast.observe.events import Doubtful, Restored, SystemFault
from handfast.process.inheritance import Inheritance, Socket
from handfast.process.storing import CONNECTION, LISTENER, STATE
from handfast.process.stowage import Door, Identity, Packet, Unstowed, identify
from handfast.process.succession import this_program
from handfast.tls.keys import wipe
from handfast.transport.alarm import Alarm

if TYPE_CHECKING:
    from handfast.observe.log import Log
    from handfast.process.systemd import ServiceManager
    from handfast.transport.loop import Loop

BARRIER_SECONDS: Final = 10.0
"""How long the manager may take to forget: connections stand still meanwhile."""
_AT_ONCE: Final = 64
_PAUSE: Final = 0.001  # the resolution of the loop's timers, so that it is another turn


class Arrival:
    """What came back. `inheritance` is as if the program before had left it; None for nothing.

    `over` is called when all is handed out, or lost, and then `then`.
    """

    def __init__(
        self, manager: ServiceManager, loop: Loop, log: Log, over: Callable[[], None]
    ) -> None:
        self.inheritance: Inheritance | None = None
        self.then: Callable[[], object] | None = None
        self._manager = manager
        self._loop = loop
        self._log = log
        self._doubts: list[SystemFault | Doubtful] = []
        self._over = over
        self._alarm = Alarm(loop)
        self._barrier = -1
        self._left: list[Packet] = []
        self._places: dict[Identity, int] = {}
        self._senders: tuple[socket.socket, ...] = ()
        self._turn = self._given = self._lost = 0
        self._unstowed: Unstowed | None = None
        stored, manager.stored = manager.stored, []
        if stored:
            self._read(stored)

    def tell(self) -> None:
        """Log what was wrong with it."""
        for each in self._doubts:
            self._log.emit(each)

    @property
    def busy(self) -> bool:
        """Whether anything of it is not handed out."""
        return self.inheritance is not None

    def _read(self, stored: list[tuple[str, int]]) -> None:
        states = [descriptor for name, descriptor in stored if name == STATE]
        others = [(name, descriptor) for name, descriptor in stored if name != STATE]
        try:
            if len(states) != 1:
                raise HandfastError("what is in the service manager's store has no state")
            self._unstowed = Unstowed(states.pop())
            self._take(self._unstowed, others)
        except HandfastError as error:
            self._doubts.append(SystemFault("nothing of the store is used", str(error)))
            for descriptor in (*states, *(descriptor for _, descriptor in others)):
                os.close(descriptor)
            self._forget_at_once({name for name, _ in stored})

    def _forget_at_once(self, names: set[str]) -> None:
        """Empty the store before anything else: it holds our ports."""
        try:
            for name in names:
                self._manager.forget(name)
            barrier = self._manager.barrier()
        except (OSError, HandfastError) as error:
            text = "the service manager's store cannot be emptied"
            self._doubts.append(SystemFault(text, str(error)))
            return
        poll = select.poll()
        poll.register(barrier, 0)
        poll.poll(BARRIER_SECONDS * 1000)
        os.close(barrier)

    def _take(self, unstowed: Unstowed, stored: list[tuple[str, int]]) -> None:
        doors = _by_identity([each for name, each in stored if name == LISTENER])
        self._places = _by_identity([each for name, each in stored if name == CONNECTION])
        for name, descriptor in stored:
            if name not in (LISTENER, CONNECTION):
                self._doubts.append(Doubtful(f"the store of descriptors has an unknown {name!r}"))
                os.close(descriptor)
                self._manager.forget(name)
        manifest = unstowed.manifest
        self._left = unstowed.packets
        self.inheritance = Inheritance(
            program=manifest.program,
            successor=this_program(()),
            began=manifest.began,
            started=manifest.started,
            listeners=tuple(_socket(each, doors) for each in manifest.doors),
            numbers=manifest.numbers,
            generation=manifest.generation,
            counts=manifest.counts,
            reloads=manifest.reloads,
        )
        for descriptor in doors.values():  # those that belong to no listener
            os.close(descriptor)

    # Out to the relays

    def serving(self, senders: tuple[socket.socket, ...]) -> None:
        """Everything serves: empty the store, and have the relays behind `senders` go on."""
        if self.inheritance is None:
            return
        self._senders = senders
        try:
            for name in (STATE, CONNECTION, LISTENER):
                self._manager.forget(name)
            self._barrier = self._manager.barrier()
        except (OSError, HandfastError) as error:
            self._give_up(str(error))
            return
        self._loop.add_reader(self._barrier, self._forgotten)
        text = f"the service manager has not answered in {BARRIER_SECONDS:g} s"
        self._alarm.set(BARRIER_SECONDS, lambda: self._give_up(text))

    def _forgotten(self) -> None:
        """Nobody else has anything of it any more."""
        self._close_barrier()
        self._alarm.stop()
        self._hand_out()

    def _close_barrier(self) -> None:
        if self._barrier >= 0:
            self._loop.remove_reader(self._barrier)
            os.close(self._barrier)
            self._barrier = -1

    def _hand_out(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._left:
                self._finish()
                return
            if not self._hand(self._left[-1]):
                self._await_room()
                return
            self._left.pop()
        self._alarm.set(_PAUSE, self._hand_out)

    def _hand(self, packet: Packet) -> bool:
        """Give a connection to a relay; False when their channels are full."""
        found = [self._places[each] for each in packet.identities if each in self._places]
        sent = len(found) < len(packet.identities)  # no: one of its sockets is not there
        if sent or self._unstowed is None:
            self._lost += 1
        else:
            try:
                sent = self._send(self._unstowed, packet, found)
                self._given += sent
            except (OSError, HandfastError) as error:
                self._log.emit(SystemFault("a connection cannot be handed over", str(error)))
                self._lost += 1
                sent = True
        for each in packet.identities if sent else ():
            if each in self._places:
                os.close(self._places.pop(each))
        return sent

    def _send(self, unstowed: Unstowed, packet: Packet, sockets: list[int]) -> bool:
        message, bulk = unstowed.message(packet), unstowed.bulk(packet)
        descriptor = -1
        try:
            if bulk is not None:
                descriptor = os.memfd_create("bulk", os.MFD_CLOEXEC)
                os.write(descriptor, bulk)
                wipe(bulk)
            sockets = [*sockets, *([descriptor] if bulk is not None else ())]
            for _ in self._senders:
                self._turn = (self._turn + 1) % len(self._senders)
                if channel.pass_on(self._senders[self._turn], message, sockets):
                    return True
            return False
        finally:
            wipe(message)
            if descriptor >= 0:
                os.close(descriptor)

    def _await_room(self) -> None:
        for each in self._senders:
            self._loop.add_writer(each.fileno(), self._has_room)

    def _has_room(self) -> None:
        for each in self._senders:
            self._loop.remove_writer(each.fileno())
        self._hand_out()

    def _give_up(self, problem: str) -> None:
        self._close_barrier()
        self._finish(problem)

    def _finish(self, problem: str = "") -> None:
        inheritance = self.inheritance
        self.close()
        if inheritance is None:
            return
        self._log.emit(
            Restored(
                from_version=inheritance.program.version,
                connections=self._given,
                ended=self._lost,
                duration_ms=round((time.monotonic() - inheritance.began) * 1000, 3),
                error_msg=problem,
            )
        )
        self._over()
        if self.then is not None:
            self.then()

    def close(self) -> None:
        """Close what was not handed out: those connections are lost."""
        self._alarm.stop()
        self._close_barrier()
        self._lost += len(self._left)
        self._left = []
        for each in self._places.values():
            os.close(each)
        self._places = {}
        if self._unstowed is not None:
            self._unstowed.close()
            self._unstowed = None
        self.inheritance = None


def _by_identity(descriptors: list[int]) -> dict[Identity, int]:
    """Arrange descriptors by what they are of; of two that look the same, neither is used."""
    found: dict[Identity, int] = {}
    ambiguous = set()
    for each in descriptors:
        identity = identify(each)
        if identity in found:
            ambiguous.add(identity)
            os.close(each)
        else:
            found[identity] = each
    for identity in ambiguous:
        os.close(found.pop(identity))
    return found


def _socket(door: Door, found: dict[Identity, int]) -> Socket:
    descriptor = -1 if door.identity is None else found.pop(door.identity, -1)
    return Socket(door.name, door.address, door.place, door.number, descriptor)
