"""An acceptor in the test's own process: real sockets around it, and a clock that the test sets."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from handfast.accept.acceptor import Acceptor, Door, Terms
from handfast.config import Limits, Route
from handfast.handover import channel
from handfast.handover.message import Handover
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.policy.clients import Clients
from handfast.policy.routes import Routes
from handfast.tls.openssl import OpenSSLEngine
from handfast.transport.census import Census, Column
from handfast.transport.loop import Loop
from harness.instance import parse_line
from unit.relay.clock import Clock
from unit.tls.engines import Client

LOCAL = "127.0.0.1"
HANDSHAKE_SECONDS = 5.0


class TlsClient:
    """A client of pyOpenSSL's on a real socket, which does what it can without waiting."""

    def __init__(self, accepting: Accepting, sock: socket.socket, tls: Client) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.tls = tls
        self.ended = False
        self.was_reset = False
        self.received = b""
        self._accepting = accepting

    def begin(self, *, before: bytes = b"", step: int = 1 << 20) -> None:
        """Send what comes before TLS, and the hello, in pieces."""
        data = before + self.tls.feed(b"")
        for start in range(0, len(data), step):
            self.sock.sendall(data[start : start + step])
            self._accepting.glance()

    def look(self) -> None:
        """Take what has come, and answer it."""
        while not self.ended:
            try:
                data = self.sock.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionResetError:
                self.was_reset = self.ended = True
                return
            self.received += data
            self.ended = not data
            if data and (answer := self.tls.feed(data)):
                self.sock.sendall(answer)

    def until(self, condition: Callable[[], object]) -> None:
        def done() -> object:
            self.look()
            return condition()

        self._accepting.until(done)

    def shake_hands(self) -> None:
        self.begin()
        self.until(lambda: self.tls.done)

    def wait_for_the_end(self) -> None:
        self.until(lambda: self.ended)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


class Accepting:
    """The acceptor with one door, and everything around it."""

    def __init__(
        self,
        stack: ExitStack,
        engine: OpenSSLEngine | None,
        *,
        routes: tuple[Route, ...] = (),
        alpn: tuple[str, ...] = (),
        proxies: tuple[str, ...] = (),
        clients: Clients | None = None,
        limits: Limits = Limits(),  # noqa: B008 - it cannot change
        max_connections: int = 0,
        relays: int = 1,
    ) -> None:
        self.loop = Clock()
        self.census = Census(1)
        self.drained = False
        self.listening = stack.enter_context(socket.create_server((LOCAL, 0)))
        self.listening.setblocking(False)
        self.channels = [channel.pair() for _ in range(relays)]
        for pair in self.channels:
            for end in pair:
                stack.enter_context(end)
        self._stack = stack
        self._log = os.memfd_create("log")
        door = Door(
            number=4,
            sock=self.listening,
            engine=engine,
            listen_ip=LOCAL,
            listen_port=443,
            clients=clients,
            routes=Routes(routes) if routes else None,
            alpn=alpn,
            proxies=tuple(map(ipaddress.ip_network, proxies)),
            max_connections=max_connections,
        )
        self.acceptor = Acceptor(
            self.loop,
            (door,),
            tuple(sender for sender, _ in self.channels),
            Terms(7, HANDSHAKE_SECONDS, limits, Column(self.census, 0)),
            Log(self._log, Level.DEBUG, process_type="worker"),
            self._ended,
        )
        stack.callback(self._close)

    def _ended(self) -> None:
        self.drained = True

    def _close(self) -> None:
        self.acceptor.end_all("the test is over")
        self.loop.advance(10.0)
        self.loop.close()
        os.close(self._log)

    def until(self, condition: Callable[[], object]) -> None:
        self.loop.until(condition)

    def glance(self) -> None:
        """Call back what is ready now."""
        Loop.call_at(self.loop, time.monotonic(), self.loop.stop)
        self.loop.run()

    def events(self, event: str = "auth", **fields: str) -> list[dict[str, str]]:
        size = os.fstat(self._log).st_size
        found = [parse_line(line) for line in os.pread(self._log, size, 0).decode().splitlines()]
        return [each for each in found if each["event"] == event and fields.items() <= each.items()]

    def event(self, event: str = "auth", **fields: str) -> dict[str, str]:
        """Wait for exactly one such event."""
        self.until(lambda: self.events(event, **fields))
        (found,) = self.events(event, **fields)
        return found

    def connect(self) -> socket.socket:
        return self._stack.enter_context(socket.create_connection(self.listening.getsockname(), 20))

    def client(self, tls: Client | None = None) -> TlsClient:
        return TlsClient(self, self.connect(), tls or Client())

    def taken(self, relay: int = 0) -> tuple[Handover, socket.socket]:
        """Take the next connection as a relay does."""
        found: list[tuple[Handover, list[int]]] = []

        def take() -> bool:
            received = channel.receive(self.channels[relay][1])
            if received is not None:
                found.append(received)
            return bool(found)

        self.until(take)
        handover, (descriptor,) = found[0]
        return handover, self._stack.enter_context(socket.socket(fileno=descriptor))

    def nothing_is_held(self) -> bool:
        """Tell whether no client is counted any more."""
        return not (self.acceptor.attempts or self.census.handshakes() or self.census.connections())


@contextmanager
def accepting(engine: OpenSSLEngine | None, **how: object) -> Iterator[Accepting]:
    with ExitStack() as stack:
        yield Accepting(stack, engine, **how)  # type: ignore[arg-type]  # same keywords
