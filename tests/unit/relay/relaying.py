"""A relay in the test's own process: real sockets on both sides, and a clock that the test sets."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from handfast.config import Route, SendProxy, Service, Target, TargetTls, TcpAddress, Timeouts
from handfast.handover import channel
from handfast.handover.message import Handover, Passthrough
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.policy.clients import ClientPolicy
from handfast.relay import question
from handfast.relay.connection import Connection
from handfast.relay.plan import ListenerPlan, Plan
from handfast.relay.relay import Relay
from handfast.relay.resolver import Resolver
from handfast.relay.transfer import can_go, give
from handfast.tls.keys import Suite
from handfast.tls.session import Session
from handfast.transport.census import Census, Column
from handfast.transport.kernel import Support
from handfast.transport.probe import probe
from harness.homes import IN_KERNEL, IN_MOTION
from harness.instance import parse_line
from unit.relay.clock import Clock
from unit.tls.sessions import AES128, End, sessions

LOCAL = "127.0.0.1"
NO_TIMEOUTS = Timeouts(idle=0, half_closed=0)


@contextmanager
def listening() -> Iterator[socket.socket]:
    """Where a target listens."""
    with socket.create_server((LOCAL, 0)) as sock:
        sock.setblocking(False)
        yield sock


def service_of(
    *listening: socket.socket, tls: TargetTls | None = None, send_proxy: SendProxy = "none"
) -> Service:
    """The service of these listening sockets."""
    places = [TcpAddress(host=LOCAL, port=each.getsockname()[1]) for each in listening]
    targets = tuple(Target(address=each, tls=tls) for each in places)
    return Service(targets=targets, send_proxy=send_proxy)


def listener_of(
    service: Service | None, *routes: Route, clients: ClientPolicy | None = None
) -> ListenerPlan:
    policy = clients or ClientPolicy()
    after = 0 if IN_KERNEL else -1
    return ListenerPlan("test", LOCAL, 443, socket.AF_INET, service, routes, policy, after)


def plan_of(
    *listeners: ListenerPlan,
    generation: int = 1,
    timeouts: Timeouts = NO_TIMEOUTS,
    anchors: dict[str, tuple[bytes, ...]] | None = None,
) -> Plan:
    places = dict(enumerate(listeners))
    return Plan(generation, places, timeouts, 1, "INFO", anchors or {}, kernel_support())


@cache
def kernel_support() -> Support:
    return probe() if IN_KERNEL else Support()


class Peer:
    """The other end of a socket of the relay's, which the test plays without waiting."""

    def __init__(self, relaying: Relaying, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.received = b""
        self.ended = False
        self.was_reset = False
        self._relaying = relaying

    def look(self) -> None:
        """Take what has come."""
        try:
            while not self.ended and (piece := self.sock.recv(1 << 20)):
                self.received += piece
            self.ended = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.was_reset = self.ended = True

    def until(self, condition: Callable[[], object]) -> None:
        def done() -> object:
            self.look()
            return condition()

        self._relaying.until(done)

    def receive(self, count: int) -> bytes:
        """Take exactly so many bytes, and leave the others."""
        self.until(lambda: len(self.received) >= count or self.ended)
        data, self.received = self.received[:count], self.received[count:]
        return data

    def wait_for_the_end(self) -> None:
        self.until(lambda: self.ended)

    def send_all(self, data: bytes) -> None:
        """Send all, however long it takes the relay."""
        left = memoryview(data)
        while left:
            try:
                left = left[self.sock.send(left) :]
            except BlockingIOError:
                self._relaying.turn()

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


class TlsClient(Peer):
    """A client whose session the relay has; `opened` is what it has read of it."""

    def __init__(self, relaying: Relaying, sock: socket.socket, session: Session) -> None:
        super().__init__(relaying, sock)
        self.end = End(session)
        self.opened = b""

    def look(self) -> None:
        super().look()
        data, self.received = self.received, b""
        if data:
            self.opened += self.end.open(data)

    def receive(self, count: int) -> bytes:
        self.until(lambda: len(self.opened) >= count or self.ended)
        data, self.opened = self.opened[:count], self.opened[count:]
        return data

    def write(self, data: bytes) -> None:
        self.send_all(self.end.seal(data))


class TlsTarget(Peer):
    """A target that speaks TLS, by the standard library."""

    def __init__(self, relaying: Relaying, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(relaying, sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.is_ready = False
        self.error = ""
        self.opened = b""
        self.closed = False

    def look(self) -> None:
        super().look()
        data, self.received = self.received, b""
        self._incoming.write(data)
        try:
            if not self.is_ready:
                self.tls.do_handshake()
                self.is_ready = True
            while not self.closed:
                piece = self.tls.read(1 << 20)
                self.opened += piece
                self.closed = not piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        except ssl.SSLError as error:
            self.error = error.reason
        self.flush()

    def flush(self) -> None:
        self.send_all(self._outgoing.read())

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), 1 << 20):
            self.tls.write(data[start : start + (1 << 20)])
            self.flush()

    def close_write(self) -> None:
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # the relay's close_notify is still to come
        self.flush()

    def receive(self, count: int) -> bytes:
        self.until(lambda: len(self.opened) >= count or self.ended)
        data, self.opened = self.opened[:count], self.opened[count:]
        return data


class Shuttle:
    """Another relay, to which all connections that can go are moved, and back from there."""

    def __init__(self, relaying: Relaying, log: Log, stack: ExitStack) -> None:
        self._relaying = relaying
        self._channels = [channel.pair(), channel.pair()]
        asking, answering = question.pair()
        for each in (*self._channels[0], *self._channels[1], asking, answering):
            stack.enter_context(each)
        loop = relaying.loop
        self._other = Relay(
            loop, [self._channels[0][1]], Resolver(loop, asking), plan_of(),
            Column(relaying.census, 1), log, lambda: None,
        )  # fmt: skip

    def and_back(self) -> None:
        here, there = self._relaying.relay, self._other
        there.generation = here.generation
        there.targets.configure(here.generation.services(), 1)
        left = sorted(here.connections, key=lambda each: each.touched)
        for connection in left:
            if can_go(connection):
                self._move(connection, 0, there)
                for moved in list(there.connections):
                    self._move(moved, 1, here)

    def _move(self, connection: Connection, way: int, relay: Relay) -> None:
        sender, receiver = self._channels[way]
        handover, sockets = give(connection)
        connection.relay.column.leave(connection.place)
        assert channel.send(sender, handover, *(each.fileno() for each in sockets))
        for each in sockets:
            each.close()
        taken = channel.receive(receiver)
        assert taken is not None
        relay._adopt(*taken)


class Relaying:
    """The relay, and everything around it."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self.loop = Clock()
        self.census = Census(2)
        self.drained = False
        self._stack = stack
        self._log = os.memfd_create("log")
        self._sender, receiver = channel.pair()
        asking, self.answering = question.pair()
        for each in (self._sender, receiver, asking, self.answering):
            stack.enter_context(each)
        log = Log(self._log, Level.DEBUG, process_type="worker")
        self.relay = Relay(
            self.loop, [receiver], Resolver(self.loop, asking), plan, Column(self.census, 0), log,
            self._ended,
        )  # fmt: skip
        self.relay.intake.start()
        self._there = Shuttle(self, log, stack) if IN_MOTION else None
        stack.callback(self._close)

    def _ended(self) -> None:
        self.drained = True

    def _close(self) -> None:
        self.relay.end_all("the test is over")
        self.loop.advance(5.0)
        self.relay.pipes.close()
        self.loop.close()
        os.close(self._log)

    def until(self, condition: Callable[[], object]) -> None:
        def moved_and_done() -> object:
            self._move()
            return condition()

        self.loop.until(moved_and_done)

    def turn(self) -> None:
        self._move()
        self.loop.turn()

    def _move(self) -> None:
        if self._there is not None:
            self._there.and_back()

    def events(self, event: str = "proxy", **fields: str) -> list[dict[str, str]]:
        size = os.fstat(self._log).st_size
        found = [parse_line(line) for line in os.pread(self._log, size, 0).decode().splitlines()]
        return [
            each
            for each in found
            if each["event"] == event and fields.items() <= each.items()
        ]  # fmt: skip

    def event(self, event: str = "proxy", **fields: str) -> dict[str, str]:
        """Wait for exactly one such event."""
        self.until(lambda: self.events(event, **fields))
        found = self.events(event, **fields)
        assert len(found) == 1, found
        return found[0]

    @property
    def connections(self) -> list[Connection]:
        return list(self.relay.connections)

    def _socket(self) -> tuple[socket.socket, socket.socket]:
        with socket.create_server((LOCAL, 0)) as door:
            client = self._stack.enter_context(socket.create_connection(door.getsockname()))
            accepted, _ = door.accept()
        accepted.setblocking(False)
        return client, accepted

    def give(
        self,
        session: Session | Passthrough,
        *,
        listener: int = 0,
        generation: int = 1,
        closed: bool = False,
    ) -> socket.socket:
        """Hand a connection over as an acceptor does; give the client's socket.

        The client may have `closed` its side before that.
        """
        client, accepted = self._socket()
        if closed:
            client.shutdown(socket.SHUT_WR)
        with accepted:
            handover = Handover(listener, generation, self.loop.time(), session)
            assert channel.send(self._sender, handover, accepted.fileno())
        self.loop.turn()
        return client

    def client(
        self,
        change: Callable[[Session], Session] = lambda session: session,
        *,
        suite: Suite = AES128,
        listener: int = 0,
        generation: int = 1,
        closed: bool = False,
    ) -> TlsClient:
        """A client with a session, which `change` may alter on its way."""
        server, client = sessions(suite)
        session = change(server)
        sock = self.give(session, listener=listener, generation=generation, closed=closed)
        return TlsClient(self, sock, client)

    def accepted(self, listening: socket.socket) -> socket.socket:
        """The relay's connection to a target."""
        taken: list[socket.socket] = []

        def accept() -> bool:
            try:
                taken.append(listening.accept()[0])
            except BlockingIOError:
                return False
            return True

        self.until(accept)
        return self._stack.enter_context(taken[0])

    def target(self, listening: socket.socket) -> Peer:
        return Peer(self, self.accepted(listening))

    def tls_target(self, listening: socket.socket, chain: Path, key: Path) -> TlsTarget:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        return TlsTarget(self, self.accepted(listening), context)


@contextmanager
def relaying(plan: Plan | None = None) -> Iterator[Relaying]:
    with ExitStack() as stack:
        yield Relaying(plan or plan_of(), stack)
