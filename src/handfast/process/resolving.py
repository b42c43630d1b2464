"""The resolver: looks names up for the relays, and connects to Unix sockets for them.

Of a socket at which an application takes sessions it also tells who may be behind it (`ownership`).

It is outside the chroot, because both need files, and without privileges. It holds no session, no
key and no listening socket. It does this only for the targets of the configuration: a relay that
was taken over reaches no other name and no other path by it.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import msgspec

from handfast.config import HandoffAddress, TargetAddress, TcpAddress, UnixAddress
from handfast.errors import BackendError, HandfastError
from handfast.observe.counters import Counters
from handfast.observe.events import SystemFault
from handfast.observe.log import Log
from handfast.process import worker
from handfast.process.lookups import Answer as LookedUp
from handfast.process.lookups import GetAddrInfo, Lookups
from handfast.process.messages import Serve, ToChild
from handfast.process.ownership import owner_of
from handfast.process.sealed import seal, unseal
from handfast.relay import question
from handfast.relay.question import (
    Answer,
    Connect,
    Connected,
    Found,
    NotFound,
    Open,
    Opened,
    Question,
)
from handfast.transport.loop import Loop

MAX_QUESTIONS: Final = 256
"""Of one relay at a time; a relay has one for each name, so more is no relay of ours."""
STRANGER_SECONDS: Final = 0.1
"""How long a question for what is no target may wait for the order that makes it one."""

_targets: Final = msgspec.msgpack.Decoder(tuple[TargetAddress, ...])


def run(
    control: socket.socket,
    channels: tuple[socket.socket, ...],
    addresses: Iterable[TargetAddress],
    log: Log,
) -> int:
    """Be the resolver until the supervisor says so or is gone; give the exit status."""

    def start(loop: Loop, ended: Callable[[], None]) -> Resolving:
        return Resolving(loop, channels, addresses, log, ended)

    def order(work: Resolving, message: ToChild, descriptors: list[int]) -> None:
        if isinstance(message, Serve) and descriptors:
            work.configure(_targets.decode(unseal(descriptors[0])))

    return worker.run(control, log, start, order)


def seal_targets(targets: tuple[TargetAddress, ...]) -> int:
    """Put targets where an order to serve them may take them from; give a descriptor to close."""
    return seal("targets", msgspec.msgpack.encode(targets))


class Resolving:
    """The resolver's work: one channel for each relay, and the targets that may be asked for."""

    def __init__(
        self,
        loop: Loop,
        channels: Iterable[socket.socket],
        addresses: Iterable[TargetAddress],
        log: Log,
        ended: Callable[[], None],
        getaddrinfo: GetAddrInfo = socket.getaddrinfo,
    ) -> None:
        self.counters = Counters()
        self.lookups = Lookups(loop, getaddrinfo)
        self.log = log
        self._ended = ended
        self._addresses = frozenset(addresses)
        for channel in channels:
            _Line(loop, channel, self)

    def configure(self, addresses: Iterable[TargetAddress]) -> None:
        """Serve these targets from now on, and no others."""
        self._addresses = frozenset(addresses)

    def allows(self, address: TargetAddress) -> bool:
        """Tell whether this is a target of the configuration."""
        return address in self._addresses

    def drain(self) -> None:
        """End: whoever says so knows that no relay will ask any more."""
        self._ended()

    def end_all(self, reason: str) -> None:  # noqa: ARG002  there is nobody to tell
        """End."""
        self._ended()


class _Line:
    """The channel of one relay. While an answer does not fit into it, no question is taken."""

    def __init__(self, loop: Loop, channel: socket.socket, resolving: Resolving) -> None:
        self._loop = loop
        self._channel: Final = channel
        self._resolving = resolving
        self._open = 0  # questions without an answer
        self._unsent: deque[tuple[Answer, socket.socket | None]] = deque()
        loop.add_reader(channel.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            asked = question.receive_question(self._channel)
        except EOFError:
            self._close()
        except HandfastError as error:
            fault = SystemFault(error_msg="a question was refused", error_desc=str(error))
            self._resolving.log.emit(fault)
        else:
            if asked is not None:
                self._take(asked)

    def _take(self, asked: Question) -> None:
        if self._open >= MAX_QUESTIONS:
            self._send(NotFound(asked.number, f"{MAX_QUESTIONS} questions have no answer yet"))
        elif self._resolving.allows(_address(asked)):
            self._serve(asked)
        else:
            # The supervisor's orders come by another way, and may be behind.
            self._open += 1
            self._loop.call_later(STRANGER_SECONDS, partial(self._take_again, asked))

    def _take_again(self, asked: Question) -> None:
        self._open -= 1
        if self._resolving.allows(_address(asked)):
            self._serve(asked)
        else:
            self._send(NotFound(asked.number, "not a target of the configuration"))

    def _serve(self, asked: Question) -> None:
        if isinstance(asked, Connect | Open):
            self._connect(asked)
        else:
            self._open += 1
            self._resolving.lookups.look_up(asked.host, partial(self._looked_up, asked.number))

    def _looked_up(self, number: int, answer: LookedUp) -> None:
        self._open -= 1
        if isinstance(answer, BackendError):
            self._send(NotFound(number, answer.reason, answer.description))
        else:
            self._send(Found(number, answer))

    def _connect(self, asked: Connect | Open) -> None:
        packets = isinstance(asked, Open)
        try:
            sock = _connected(asked.path, socket.SOCK_SEQPACKET if packets else socket.SOCK_STREAM)
        except OSError as error:  # EAGAIN among them: its backlog is full
            reason = f"cannot connect to {asked.path}"
            self._send(NotFound(asked.number, reason, error.strerror or str(error)))
        else:
            found = Opened(asked.number, *owner_of(asked.path)) if packets else None
            self._send(found or Connected(asked.number), sock)

    def _send(self, answer: Answer, sock: socket.socket | None = None) -> None:
        """Send an answer, with a socket that is closed here afterwards."""
        self._unsent.append((answer, sock))
        if len(self._unsent) == 1:
            self._write()

    def _write(self) -> None:
        try:
            while self._unsent and question.send(self._channel, *self._unsent[0]):
                self._drop_first()
        except OSError:
            self._close()
        else:
            self._watch()

    def _watch(self) -> None:
        """Wait for room while there is something to send, else for questions."""
        descriptor = self._channel.fileno()
        if self._unsent:
            self._loop.remove_reader(descriptor)
            self._loop.add_writer(descriptor, self._write)
        else:
            self._loop.remove_writer(descriptor)
            self._loop.add_reader(descriptor, self._readable)

    def _drop_first(self) -> None:
        _, sock = self._unsent.popleft()
        if sock is not None:
            sock.close()

    def _close(self) -> None:
        """Leave the channel alone: its other end is gone for good."""
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        while self._unsent:
            self._drop_first()


def _connected(path: str, kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def _address(asked: Question) -> TargetAddress:
    if isinstance(asked, Open):
        return HandoffAddress(path=asked.path, user=asked.user)
    if isinstance(asked, Connect):
        return UnixAddress(path=asked.path)
    return TcpAddress(host=asked.host, port=asked.port)
