"""The way to a target, up to where bytes can flow: connect, introduce the client, do TLS.

A target is in order when it has answered and, where it speaks TLS, has proved itself. Until then
another one can take its place, for the client's bytes have not been sent.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from handfast.config import HandoffAddress, TcpAddress
from handfast.errors import BackendError, ConfigError
from handfast.relay.failover import Failover
from handfast.relay.giving import Giving, distrust
from handfast.relay.securing import Securing
from handfast.relay.targets import TargetState
from handfast.tls.names import server_name
from handfast.tls.session import Session
from handfast.tls.writer import RecordWriter, room_for
from handfast.transport.lingering import Lingering
from handfast.transport.plain import reset

if TYPE_CHECKING:
    from handfast.config import Service, TargetTls
    from handfast.handover.application import Facts
    from handfast.relay.connection import Connection


class Reached(msgspec.Struct, frozen=True):
    """A target that is in order, the receiver's to release.

    `session` is the one with the target, None without TLS; `unsent` is what its socket did not
    take yet. `address` begins with what the log calls IP address and port.
    """

    target: TargetState
    sock: socket.socket
    address: Any
    session: Session | None
    unsent: bytes


class Upstream:
    """One search for a target of a service.

    Ends with one call, of the connection's `connected`, `not_connected` or, where the target is an
    application and has taken the session, `handed_over`; with none after `cancel`. `facts` are for
    such a target, None in a service without. `header` goes before everything else, TLS included;
    `early` is what the client has sent, where that is to be carried as it is.
    """

    __slots__ = (
        "_address",
        "_connection",
        "_data",
        "_early",
        "_facts",
        "_failover",
        "_giving",
        "_header",
        "_securing",
        "_sock",
        "bucket",
    )

    def __init__(
        self,
        connection: Connection,
        service: Service,
        header: bytes,
        early: bytes,
        facts: Facts | None,
    ) -> None:
        relay = connection.relay
        reader = connection.to_target.reader
        unread = reader.unread if reader is not None else early
        self.bucket = 0
        self._connection = connection
        self._header = header
        self._early = early
        self._facts = facts
        self._data = b""  # of the client, opened for an application that did not get it
        self._giving: Giving | None = None
        self._securing: Securing | None = None
        self._sock: socket.socket | None = None
        self._address: Any = None
        self._failover = Failover(
            relay.targets.pool(service),
            relay.resolver,
            relay.deadlines,
            relay.loop,
            relay.timeouts.connect,
            self._connected,
            self._failed,
            eager=bool(header or unread),
        )

    def start(self) -> None:
        """Make for a target."""
        self._failover.start()

    def _failed(self, error: BackendError) -> None:
        self._end()
        self._connection.not_connected(error)

    def _connected(self, sock: socket.socket, address: Any) -> None:
        self._sock, self._address = sock, address
        target = self._failover.target
        if isinstance(target.address, HandoffAddress):
            self._offer(sock, target.address)
            return
        if target.tls is not None:
            self._secure(sock, target.tls)
            return
        lead = self._header + self._early + self._data
        try:
            sent = sock.send(lead) if lead else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            description = error.strerror or str(error)
            self._retry(BackendError("write to the target failed", description=description))
            return
        self._finish(None, lead[sent:])

    def _offer(self, sock: socket.socket, address: HandoffAddress) -> None:
        """Give the session to the application at the other end of a socket, if it is the one."""
        relay, facts = self._connection.relay, self._facts
        problem = distrust(sock, address, self._address[2], relay.generation.plan.accounts)
        if problem is not None or facts is None:
            self._retry(problem or BackendError("there is no session to hand over"))
            return
        relay.deadlines.set(self, self._failover.until)
        self._giving = Giving(
            self._connection,
            sock,
            facts,
            self._failover.until,
            self._given,
            self._retry,
            self._lost,
        )
        self._giving.start(self._data)

    def _given(self) -> None:
        self._failover.target.succeeded()
        address = self._address
        self.cancel()
        self._connection.handed_over(address)

    def _lost(self, error: BackendError) -> None:
        self._failover.target.failed(error)
        self.cancel()
        self._connection.not_connected(error)

    def _secure(self, sock: socket.socket, tls: TargetTls) -> None:
        address = self._failover.target.address
        host = address.host if isinstance(address, TcpAddress) else ""
        relay = self._connection.relay
        try:
            name = server_name(tls.server_name or host)
        except ConfigError as error:
            self._retry(BackendError("no TLS session with the target", description=str(error)))
            return
        relay.deadlines.set(self, self._failover.until)
        trust = relay.generation.trust(tls)
        self._securing = Securing(relay.loop, sock, name, trust, self._secured, self._retry)
        self._securing.start(self._header)

    def _secured(self, session: Session, unsent: bytes) -> None:
        if self._data:
            session, sealed = _seal(session, self._data)
            unsent += sealed
        self._finish(session, unsent)

    def _finish(self, session: Session | None, unsent: bytes) -> None:
        address = self._address
        sock = self._leave()
        if sock is not None:
            target = self._failover.target
            target.succeeded()
            self._end()
            self._connection.connected(Reached(target, sock, address, session, unsent))

    def _retry(self, error: BackendError) -> None:
        """Give the target at hand up, and make for another."""
        relay = self._connection.relay
        sock = self._leave()
        if sock is None:
            pass
        elif isinstance(self._failover.target.address, HandoffAddress):
            sock.close()  # nothing was sent, and nothing is read
        else:
            # In order, so that an alert arrives: nothing of the client was sent.
            Lingering(relay.loop, relay.deadlines, sock)
        self._failover.retry(error)

    def expired(self, now: float) -> None:  # noqa: ARG002 - the protocol of Deadlines
        """Give the target at hand up: its time is over before it is in order."""
        if self._giving is not None:
            self._giving.expired()
            return
        self._retry(BackendError("no TLS session with the target in its time"))

    def cancel(self) -> None:
        """Give everything up."""
        sock = self._leave()
        if sock is not None:
            reset(sock)
        self._failover.cancel()
        self._end()

    def _end(self) -> None:
        """Let go of the search, which refers to this: so the memory of both goes at once."""
        del self._failover

    def _leave(self) -> socket.socket | None:
        """Be done with the socket at hand, if there is one, and give it away."""
        if self._securing is not None:
            self._securing.cancel()
            self._securing = None
        if self._giving is not None:
            self._giving.cancel()
            self._data = self._giving.data
            self._giving = None
        if self.bucket:
            self._connection.relay.deadlines.drop(self)
        sock, self._sock = self._sock, None
        return sock


def _seal(session: Session, data: bytes) -> tuple[Session, bytes]:
    """Seal data; give the session as it is then."""
    writer = RecordWriter(session)
    out = memoryview(bytearray(room_for(len(data))))
    # Sealing needs a byte to spare.
    length = writer.seal(memoryview(bytearray(data + b"\0")), len(data), out)
    return replace(session, write=writer.export(), bytes_out=writer.bytes), bytes(out[:length])
