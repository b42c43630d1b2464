"""An acceptor: accepts, drives handshakes, and hands each session over to a relay.

It holds the certificates' keys and sees the bytes of unfinished handshakes only. It owns a
client's socket until the hand-over, then closes its copy and forgets it.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from handfast.accept.attempt import Attempt
from handfast.handover import channel
from handfast.handover.message import Handover
from handfast.observe.counters import Counters
from handfast.observe.events import SystemFault
from handfast.observe.log import Log
from handfast.tls.handshake import Engine
from handfast.transport.deadlines import Deadlines
from handfast.transport.loop import Loop

ACCEPT_BATCH: Final = 16
READ_SIZE: Final = 1 << 15
PAUSE_SECONDS: Final = 0.1
_MAPPED: Final = "::ffff:"
"""How an IPv4 client looks on a socket that takes both families (RFC 4291, section 2.5.5.2)."""
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


class Door(msgspec.Struct, frozen=True):
    """A listening socket with what its clients are met with. `number` names it to the relays."""

    number: int
    sock: socket.socket
    engine: Engine
    listen_ip: str
    listen_port: int


class Acceptor:
    """The doors and the handshakes of one acceptor process."""

    def __init__(
        self,
        loop: Loop,
        doors: tuple[Door, ...],
        senders: tuple[socket.socket, ...],
        handshake_timeout: float,
        log: Log,
        ended: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.log = log
        self.counters = Counters()
        self.deadlines = Deadlines(loop)
        self.handshake_timeout = handshake_timeout
        self.buffer: Final = memoryview(bytearray(READ_SIZE))
        self.attempts: Final[set[Attempt]] = set()
        self._doors = doors
        self._senders = senders
        self._turn = 0
        self._waiting: deque[tuple[Handover, socket.socket]] = deque()
        self._open = False
        self._draining = False
        self._ended = ended
        self._listen()

    def _listen(self) -> None:
        if not self._open and not self._draining and not self._waiting:
            self._open = True
            for door in self._doors:
                self.loop.add_reader(door.sock.fileno(), partial(self._accept, door))

    def _pause(self) -> None:
        if self._open:
            self._open = False
            for door in self._doors:
                self.loop.remove_reader(door.sock.fileno())

    def _accept(self, door: Door) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, address = door.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._cannot_accept(error)
                return
            sock.setblocking(False)
            self.counters.accepted += 1
            # A Unix socket's client has no address.
            host, port = (address[0], address[1]) if isinstance(address, tuple) else ("", 0)
            attempt = Attempt(self, door, sock, host.removeprefix(_MAPPED), port)
            self.attempts.add(attempt)
            attempt.start()

    def _cannot_accept(self, error: OSError) -> None:
        if error.errno in _EXHAUSTED:
            self._pause()
            self.loop.call_later(PAUSE_SECONDS, self._listen)
        self.log.emit(
            SystemFault(error_msg="cannot accept a connection", error_desc=error.strerror or "")
        )

    def hand_over(self, handover: Handover, sock: socket.socket) -> None:
        """Give a session to a relay: the next in turn that has room, else the first to have it."""
        if self._waiting or not self._try(handover, sock):
            self._waiting.append((handover, sock))
            if len(self._waiting) == 1:
                self._pause()
                for sender in self._senders:
                    self.loop.add_writer(sender.fileno(), self._retry)

    def _try(self, handover: Handover, sock: socket.socket) -> bool:
        for _ in self._senders:
            self._turn = (self._turn + 1) % len(self._senders)
            if channel.send(self._senders[self._turn], handover, sock.fileno()):
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
        if self._draining and not self.attempts and not self._waiting:
            self._ended()
