"""Where targets are: IP addresses at once, the rest by asking the resolver process.

A relay in its sandbox can neither look up a name nor open the path of a Unix socket.

The addresses of a name are asked for again every ten seconds while the name is in use, so that a
change is followed without anybody waiting for an answer. While that fails, the last good answer
serves on, for five minutes. A name that nothing has used for five minutes is forgotten. No failure
is kept: the next connection asks again.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import chain, count, zip_longest
from typing import Any, Final, TypeAlias

from handfast.config import HandoffAddress, TcpAddress, UnixAddress
from handfast.errors import BackendError
from handfast.relay import question
from handfast.relay.question import (
    Answer,
    Ask,
    Connect,
    Connected,
    Found,
    NotFound,
    Open,
    Opened,
    Question,
)
from handfast.transport.loop import Loop

Endpoint: TypeAlias = tuple[int, Any]
"""An address family and the address as `connect` takes it."""

Resolved: TypeAlias = Callable[[list[Endpoint] | BackendError], None]
ConnectedTo: TypeAlias = Callable[[socket.socket | BackendError], None]
OpenedFor: TypeAlias = Callable[[tuple[socket.socket, Opened] | BackendError], None]
_Answered: TypeAlias = Callable[[Answer | BackendError, int], None]

REFRESH_SECONDS: Final = 10.0
KEEP_SECONDS: Final = 300.0
ANSWER_SECONDS: Final = 6.0
"""How long an answer is waited for: one second more than the resolver takes to give up."""


def interleave(endpoints: list[Endpoint]) -> list[Endpoint]:
    """Order by alternating families, beginning with that of the first (RFC 8305, section 4)."""
    if not endpoints:
        return []
    first = [each for each in endpoints if each[0] == endpoints[0][0]]
    others = [each for each in endpoints if each[0] != endpoints[0][0]]
    return [each for each in chain(*zip_longest(first, others)) if each is not None]


class _Name:
    """What is known of one name: its last good answer, and who waits for the first one."""

    __slots__ = ("endpoints", "found", "used", "waiting")

    def __init__(self) -> None:
        self.endpoints: list[Endpoint] = []
        self.found = self.used = 0.0
        self.waiting: list[Resolved] = []


class Resolver:
    """Asks for one relay. Callbacks come from the event loop, or before the call returns.

    `failed_refreshes` counts those that left an old answer in use.
    """

    def __init__(self, loop: Loop, channel: socket.socket) -> None:
        self.failed_refreshes = 0
        self._loop = loop
        self._channel: Final = channel
        self._names: dict[TcpAddress, _Name] = {}
        # A relay that follows one that died finds answers in the channel that are not its own.
        self._numbers = count(time.monotonic_ns())
        self._asked: dict[int, tuple[float, _Answered]] = {}  # the oldest first
        self._timed = False  # a timer waits for the oldest of them, or for an older one
        self._unsent: deque[Question] = deque()
        loop.add_reader(channel.fileno(), self._readable)

    def resolve(self, address: TcpAddress, callback: Resolved) -> None:
        """Give the endpoints of an address, at least one, or the reason why there is none."""
        name = self._names.get(address)
        if name is None:
            name = self._begin(address)
        name.used = self._loop.time()
        if name.endpoints:
            callback(name.endpoints)
            return
        name.waiting.append(callback)
        if len(name.waiting) == 1:
            self._look_up(address, name)

    def connect(self, address: UnixAddress, callback: ConnectedTo) -> None:
        """Give a non-blocking socket connected to the path, for the callee to own, or the reason.

        The callback always comes, within ANSWER_SECONDS; who no longer wants the socket closes it.
        """
        answered = partial(_open, address, callback)
        self._ask(Connect(next(self._numbers), address.path), answered)

    def open(self, address: HandoffAddress, callback: OpenedFor) -> None:
        """Give a non-blocking socket connected to an application, as `connect` does, and whose."""
        answered = partial(_open_packets, address, callback)
        self._ask(Open(next(self._numbers), address.path, address.user), answered)

    def _begin(self, address: TcpAddress) -> _Name:
        name = self._names[address] = _Name()
        if endpoint := literal(address):
            name.endpoints.append(endpoint)
        return name

    def _look_up(self, address: TcpAddress, name: _Name) -> None:
        answered = partial(self._looked_up, address, name)
        self._ask(Ask(next(self._numbers), address.host, address.port), answered)

    def _looked_up(
        self, address: TcpAddress, name: _Name, answer: Answer | BackendError, descriptor: int
    ) -> None:
        if descriptor >= 0:
            os.close(descriptor)  # an answer to another kind of question
        now = self._loop.time()
        found = _endpoints(address, answer)
        if not isinstance(found, BackendError):
            name.endpoints, name.found = found, now
        elif name.endpoints and now < name.found + KEEP_SECONDS:
            self.failed_refreshes += 1
        else:
            del self._names[address]
        if address in self._names:
            self._loop.call_at(now + REFRESH_SECONDS, partial(self._refresh, address, name))
        waiting, name.waiting = name.waiting, []
        for callback in waiting:
            callback(found)

    def _refresh(self, address: TcpAddress, name: _Name) -> None:
        if self._loop.time() < name.used + KEEP_SECONDS:
            self._look_up(address, name)
        else:
            del self._names[address]

    def _ask(self, asked: Question, answered: _Answered) -> None:
        """Send a question, when the channel has room; the time for its answer begins now."""
        until = self._loop.time() + ANSWER_SECONDS
        if not self._timed:
            self._timed = True
            self._loop.call_at(until, self._expire)
        self._asked[asked.number] = (until, answered)
        self._unsent.append(asked)
        if len(self._unsent) == 1:
            self._write()

    def _write(self) -> None:
        """Send what there is room for, and come back when there is more."""
        try:
            while self._unsent and question.send(self._channel, self._unsent[0]):
                self._unsent.popleft()
        except OSError:
            self._lose()
        if self._unsent:
            self._loop.add_writer(self._channel.fileno(), self._write)
        else:
            self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        try:
            taken = question.receive_answer(self._channel)
        except EOFError:
            self._loop.remove_reader(self._channel.fileno())
            self._lose()
            return
        if taken is None:
            return
        answer, descriptor = taken
        _, answered = self._asked.pop(answer.number, (0.0, None))
        if answered is not None:
            answered(answer, descriptor)
        elif descriptor >= 0:
            os.close(descriptor)  # whoever asked waits no more

    def _expire(self) -> None:
        """Fail what has waited too long."""
        now = self._loop.time() + 0.01  # a timer may come a millisecond early
        late = [number for number, (until, _) in self._asked.items() if until <= now]
        self._fail(late, BackendError(f"the resolver gave no answer in {ANSWER_SECONDS:g} s"))
        while self._unsent and self._unsent[0].number not in self._asked:
            self._unsent.popleft()
        self._timed = bool(self._asked)
        if self._timed:
            until, _ = next(iter(self._asked.values()))
            self._loop.call_at(until, self._expire)

    def _lose(self) -> None:
        """Fail all questions, because nobody is left to answer them."""
        self._unsent.clear()
        self._fail(list(self._asked), BackendError("the resolver is gone"))

    def _fail(self, numbers: list[int], error: BackendError) -> None:
        for number in numbers:
            _, answered = self._asked.pop(number, (0.0, None))
            if answered is not None:
                answered(error, -1)


def literal(address: TcpAddress) -> Endpoint | None:
    """Read an address that nobody has to be asked for; None for all others."""
    if "%" in address.host:
        return None  # a scoped address needs the resolver, for the number of its interface
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return None
    return _endpoint(address.host, address.port, 0)


def _endpoint(ip: str, port: int, scope: int) -> Endpoint:
    if ":" in ip:
        return socket.AF_INET6, (ip, port, 0, scope)
    return socket.AF_INET, (ip, port)


def _endpoints(address: TcpAddress, answer: Answer | BackendError) -> list[Endpoint] | BackendError:
    """Read an answer to an Ask."""
    if isinstance(answer, BackendError):
        return answer
    if isinstance(answer, NotFound):
        return BackendError(answer.reason, description=answer.description)
    if isinstance(answer, Found) and all(_is_ip(ip) for ip, _ in answer.places):
        return interleave([_endpoint(ip, address.port, scope) for ip, scope in answer.places])
    return BackendError(f"the resolver gave no addresses of {address.host}")


def _is_ip(text: str) -> bool:
    try:
        return not getattr(ipaddress.ip_address(text), "scope_id", None)
    except ValueError:
        return False


def _open(
    address: UnixAddress, callback: ConnectedTo, answer: Answer | BackendError, descriptor: int
) -> None:
    """Read an answer to a Connect."""
    if isinstance(answer, Connected):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
        sock.setblocking(False)
        callback(sock)
    else:
        callback(_unconnected(address, answer, descriptor))


def _open_packets(
    address: HandoffAddress, callback: OpenedFor, answer: Answer | BackendError, descriptor: int
) -> None:
    """Read an answer to an Open."""
    if isinstance(answer, Opened):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, descriptor)
        sock.setblocking(False)
        callback((sock, answer))
    else:
        callback(_unconnected(address, answer, descriptor))


def _unconnected(
    address: UnixAddress | HandoffAddress, answer: Answer | BackendError, descriptor: int
) -> BackendError:
    if descriptor >= 0:
        os.close(descriptor)  # an answer to another kind of question
    if isinstance(answer, NotFound):
        return BackendError(answer.reason, description=answer.description)
    if isinstance(answer, BackendError):
        return answer
    return BackendError(f"the resolver did not connect to {address}")
