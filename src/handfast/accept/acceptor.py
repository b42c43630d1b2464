"""An acceptor: accepts, drives handshakes, and hands each session over to a relay.

It holds the certificates' keys and sees the bytes of unfinished handshakes only. It owns a
client's socket until the hand-over, then closes its copy and forgets it.

Sessions leave at the end of the loop's turn in which their handshakes ended. Each wakes a relay,
which takes the core at once, as an acceptor gives way: in between two handshakes it would find
nothing in the caches. A new connection costs 8 % less of the acceptor's CPU this way (measured on
one core). A turn is short: see `loop.MOST_EVENTS`.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

import msgspec

from handfast.accept.admission import Admission, Refusal, Refusals
from handfast.accept.attempt import Attempt, turn_away
from handfast.config import Limits
from handfast.handover import channel
from handfast.handover.message import Handover
from handfast.observe.counters import Counters
from handfast.observe.events import Accepting, SystemFault
from handfast.observe.log import Log
from handfast.policy.clients import Clients
from handfast.policy.routes import Routes
from handfast.tls.handshake import Engine
from handfast.transport.census import Column
from handfast.transport.deadlines import Deadlines
from handfast.transport.loop import Loop

ACCEPT_BATCH: Final = 16
READ_SIZE: Final = 1 << 15
PAUSE_SECONDS: Final = 0.1
_MAPPED: Final = "::ffff:"
"""How an IPv4 client looks on a socket that takes both families (RFC 4291, section 2.5.5.2)."""
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_TELL_SECONDS: Final = 1.0

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class Terms(msgspec.Struct, frozen=True, eq=False):
    """What an acceptor goes by, beside its doors: the generation that it is of, and its limits."""

    generation: int
    handshake_timeout: float
    limits: Limits
    column: Column


class Door(msgspec.Struct, frozen=True, eq=False):
    """A listening socket with what its clients are met with. `number` names it to the relays.

    `engine` is None where every client is passed through. `clients` decides about certificates,
    None where none are asked for. `routes` is None where no route passes through. `proxies` are
    the networks whose connections begin with a PROXY header.
    """

    number: int
    sock: socket.socket
    engine: Engine | None
    listen_ip: str
    listen_port: int
    clients: Clients | None = None
    routes: Routes | None = None
    alpn: tuple[str, ...] = ()
    proxies: tuple[Network, ...] = ()
    max_connections: int = 0

    def is_proxy(self, address: str) -> bool:
        """Tell whether connections from this address begin with a PROXY header."""
        if not self.proxies or not address:
            return False
        source = ipaddress.ip_address(address.partition("%")[0])
        return any(source in network for network in self.proxies)


class Acceptor:
    """The doors and the handshakes of one acceptor process."""

    def __init__(
        self,
        loop: Loop,
        doors: tuple[Door, ...],
        senders: tuple[socket.socket, ...],
        terms: Terms,
        log: Log,
        ended: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.log = log
        self.counters = Counters()
        self.deadlines = Deadlines(loop)
        self.generation = terms.generation
        self.handshake_timeout = terms.handshake_timeout
        self.admission = Admission(terms.column, terms.limits)
        self.buffer: Final = memoryview(bytearray(READ_SIZE))
        self.attempts: Final[set[Attempt]] = set()
        self._refusals = Refusals()
        self._telling = False
        self._doors = doors
        self._senders = senders
        self._turn = 0
        self._waiting: deque[tuple[Handover, socket.socket]] = deque()
        self._leaving = 0
        self._open = False
        self._exhausted = False
        self._draining = False
        self._ended = ended
        self._listen()

    def _listen(self) -> None:
        if not self._open and not self._draining and not self._waiting:
            self._open = True
            for door in self._doors:
                accept = partial(self._accept, door, int(door.sock.family))
                self.loop.add_reader(door.sock.fileno(), accept)

    def _pause(self) -> None:
        if self._open:
            self._open = False
            for door in self._doors:
                self.loop.remove_reader(door.sock.fileno())

    def _accept(self, door: Door, family: int) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                # What socket.accept calls. It then looks family and type up, and as enums, which
                # takes as long as all the rest of it.
                descriptor, address = door.sock._accept()  # type: ignore[attr-defined]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._cannot_accept(error)
                return
            sock = socket.socket(family, socket.SOCK_STREAM, 0, descriptor)
            sock.setblocking(False)
            self.counters.accept(door.number)
            # A Unix socket's client has no address.
            host, port = (address[0], address[1]) if isinstance(address, tuple) else ("", 0)
            self._begin(door, sock, host.removeprefix(_MAPPED), port)
            if self._exhausted:
                self._recovered()

    def _begin(self, door: Door, sock: socket.socket, host: str, port: int) -> None:
        headed = door.is_proxy(host)
        # Whom a proxy speaks for is known when its header has come.
        place = self.admit(door, "" if headed else host)
        if place is None:
            turn_away(sock, self.buffer)
            return
        attempt = Attempt(self, door, sock, host, port, place, headed=headed)
        self.attempts.add(attempt)
        attempt.start()

    def admit(self, door: Door, host: str) -> int | None:
        """Give a client its place, for `release`; None when it is one too many."""
        now = self.loop.time()
        place = self.admission.admit(door.number, door.max_connections, host, now)
        if not isinstance(place, Refusal):
            return place
        self.counters.refuse(place.value)
        self._refusals.add(place, door.listen_ip, door.listen_port, host)
        if not self._telling:
            self._telling = True
            self.loop.call_later(_TELL_SECONDS, self._tell)
        return None

    def _tell(self) -> None:
        self._telling = False
        for event in self._refusals.take():
            self.log.emit(event)

    def _cannot_accept(self, error: OSError) -> None:
        description = error.strerror or ""
        if error.errno not in _EXHAUSTED:
            self.log.emit(SystemFault("cannot accept a connection", description))
            return
        self._pause()
        self.loop.call_later(PAUSE_SECONDS, self._listen)
        if not self._exhausted:
            self._exhausted = True
            self.log.emit(Accepting("paused", "no descriptors or memory are left", description))

    def _recovered(self) -> None:
        self._exhausted = False
        self.log.emit(Accepting("resumed"))

    def hand_over(self, handover: Handover, sock: socket.socket) -> None:
        """Give a session to a relay, at the end of this turn of the loop.

        The relay is the next in turn that has room, else the first to have it.
        """
        self._leaving += 1
        self.loop.call_soon(partial(self._send_off, handover, sock))

    def _send_off(self, handover: Handover, sock: socket.socket) -> None:
        self._leaving -= 1
        if self._waiting or not self._try(handover, sock):
            self._waiting.append((handover, sock))
            if len(self._waiting) == 1:
                self._pause()
                for sender in self._senders:
                    self.loop.add_writer(sender.fileno(), self._retry)
        self._end_if_drained()

    def _try(self, handover: Handover, sock: socket.socket) -> bool:
        for _ in self._senders:
            self._turn = (self._turn + 1) % len(self._senders)
            try:
                if not channel.send(self._senders[self._turn], handover, sock.fileno()):
                    continue
            except OSError as error:  # it cannot be sent at all: too long, say
                reason = error.strerror or str(error)
                self.log.emit(SystemFault("a connection cannot be handed over", reason))
            handover.wipe()
            sock.close()
            return True
        return False

    def _retry(self) -> None:
        while self._waiting and self._try(*self._waiting[0]):
            self._waiting.popleft()
        if not self._waiting:
            for sender in self._senders:
                self.loop.remove_writer(sender.fileno())
            self._listen()
            self._end_if_drained()

    def forget(self, attempt: Attempt) -> None:
        """Take an attempt that has ended, one way or the other, out of the books."""
        self.attempts.discard(attempt)
        if attempt.place is not None:
            self.admission.release(attempt.place)
        self._end_if_drained()

    def end_all(self, reason: str) -> None:
        """End the handshakes in progress."""
        for attempt in list(self.attempts):
            attempt.cancel(reason)

    def drain(self) -> None:
        """Accept no more; end when the handshakes in progress have ended."""
        self._draining = True
        self._pause()
        for door in self._doors:
            door.sock.close()
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self._draining and not (self.attempts or self._leaving or self._waiting):
            self._ended()
