"""Give a client's session to an application: its socket and, in one message, all the rest.

The application is asked for nothing but the word that it has taken it. Until the message is sent,
whatever goes wrong is as with any target: it has failed, and another may be tried. From then on the
session is the application's or nobody's, for two who seal under one key would break it. So one that
is not confirmed is ended, and its socket shut down for both, in case the application has it after
all.

Who the application is, the kernel says (SO_PEERCRED): the user that called `listen`. It has to be
root, or the `user` of the target, or without one the owner of the socket, as far as the resolver
found that nobody else could have put it there.
"""

from __future__ import annotations

import array
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from handfast.config import HandoffAddress
from handfast.errors import BackendError, HandfastBug, HandfastError
from handfast.handover.application import TAKEN, Facts, Offer, encode
from handfast.relay.introduction import destination
from handfast.relay.moving import NEVER
from handfast.relay.settling import SETTLE_SECONDS, Settling
from handfast.relay.splicing import FromKernel, ToKernel
from handfast.tls.export import export
from handfast.tls.keys import VERSION_NAMES, wipe
from handfast.tls.reader import RecordReader
from handfast.tls.session import Peer, Session
from handfast.tls.writer import RecordWriter
from handfast.transport.kernel import KernelReader, KernelWriter

if TYPE_CHECKING:
    from handfast.config import Service
    from handfast.relay.connection import Connection
    from handfast.relay.plan import ListenerPlan
    from handfast.relay.question import Opened

_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid
_DISTRUSTED: Final = "the application is not one to be trusted"


def facts_of(session: Session, listener: ListenerPlan, client: socket.socket) -> Facts:
    """Put together what an application is told of a client."""
    peer = session.peer
    where = destination(peer, client) or ("", 0)
    return Facts(
        client_ip=peer.address,
        client_port=peer.port,
        listen_ip=where[0],
        listen_port=where[1],
        listener=listener.name,
        sni=peer.sni,
        alpn=peer.alpn,
        tls_version=VERSION_NAMES[session.version],
        ciphersuite=session.suite.name,
        group=peer.group,
        resumed=peer.resumed,
        certificates=peer.certificates,
    )


def facts_for(
    service: Service, session: Session, listener: ListenerPlan, client: socket.socket
) -> Facts | None:
    """Put together what the applications of a service are told of a client; None without any."""
    if not any(isinstance(each.address, HandoffAddress) for each in service.targets):
        return None
    return facts_of(session, listener, client)


def distrust(sock: socket.socket, address: HandoffAddress, opened: Opened,
             accounts: dict[str, int]) -> BackendError | None:  # fmt: skip
    """Tell why the application behind a socket may not have a session; None when it may."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    trusted = accounts.get(address.user, -1) if address.user else opened.owner
    if user in {0, trusted}:
        return None
    if address.user:
        why = f"it is of user {user}, not {address.user}"
    else:
        why = opened.doubt or f"it is of user {user}, and its socket of user {opened.owner}"
    return BackendError(_DISTRUSTED, description=why)


class Giving:
    """One attempt to give the session of a connection to the application behind a socket.

    It has time `until` then, by the loop's clock; whoever watches that calls `expired`.

    Ends with one call: of `given`; of `failed`, when nothing was sent and the session is the
    connection's as before; of `lost`, when it is nobody's. None comes after `cancel`, nor when the
    connection ends. `data` is what was opened of the client's records; it goes first.
    """

    __slots__ = (
        "_connection",
        "_facts",
        "_failed",
        "_given",
        "_lost",
        "_sent",
        "_settling",
        "_sock",
        "_until",
        "data",
    )

    def __init__(
        self,
        connection: Connection,
        sock: socket.socket,
        facts: Facts,
        until: float,
        given: Callable[[], None],
        failed: Callable[[BackendError], None],
        lost: Callable[[BackendError], None],
    ) -> None:
        self._connection = connection
        self._sock = sock
        self._facts = facts
        self._until = until
        self._given = given
        self._failed = failed
        self._lost = lost
        self._settling: Settling | None = None
        self._sent = False
        self.data = b""

    def start(self, data: bytes) -> None:
        """Move the session into the kernel where that is wanted, and send it.

        `data` is what an attempt before this has opened.
        """
        self.data = data
        if not _moves(self._connection):
            self._send()
            return
        # Half of the time is for the application.
        left = max(0.0, self._until - self._connection.relay.loop.time()) / 2
        self._settling = Settling(self._connection, self._settled, min(SETTLE_SECONDS, left))
        self._settling.start()

    def _settled(self) -> None:
        if self._settling is not None:
            self.data += self._settling.data
            self._settling = None
        self._connection.due = 0
        self._connection.move_on()
        self._send()

    def _send(self) -> None:
        connection = self._connection
        session = _take(connection)
        message = bytearray()
        try:
            message = encode(Offer(self._facts, session, self.data))
            rights = array.array("i", (connection.client.fileno(),))
            self._sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except (OSError, HandfastError) as error:
            _give_back(connection, session)
            description = getattr(error, "strerror", None) or str(error)
            self._failed(BackendError("the session was not sent", description=description))
            return
        finally:
            wipe(message)
            session.wipe()
        self._sent = True
        connection.relay.loop.add_reader(self._sock.fileno(), self._answered)

    def _answered(self) -> None:
        """Take the word of the application. Whatever else it says, it has said the wrong thing."""
        try:
            answer = self._sock.recv(len(TAKEN) + 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        if answer == TAKEN:
            self._sent = False  # it is no longer ours to end
            self.cancel()
            self._given()
        else:
            self._lose("it gave a wrong answer" if answer else "it closed without an answer")

    def expired(self) -> None:
        """Act on the end of the time for this application."""
        if self._sent:
            self._lose("it gave no answer in its time")
        else:
            self.cancel()
            self._failed(BackendError("the session could not be sent in its time"))

    def _lose(self, description: str) -> None:
        self.cancel()
        self._lost(BackendError("the application did not take the session",
                                description=description))  # fmt: skip

    def cancel(self) -> None:
        """Give everything up; a session that was sent can then be used by nobody."""
        if self._settling is not None:
            self.data += self._settling.data
            self._settling.cancel()
            self._settling = None
        self._connection.relay.loop.remove_reader(self._sock.fileno())
        if self._sent:
            with contextlib.suppress(OSError):  # the client has gone
                self._connection.client.shutdown(socket.SHUT_RDWR)


def _moves(connection: Connection) -> bool:
    """Tell whether any of a session is to be moved into the kernel now."""
    sealer = connection.to_client.sealer
    support = connection.relay.generation.plan.kernel
    return connection.due != NEVER and sealer is not None and sealer.suite.code in support.tx


def _take(connection: Connection) -> Session:
    """Take the session out of a connection, whose own end can seal nothing from then on."""
    flow, back = connection.to_target, connection.to_client
    if flow.contents is None or back.sealer is None:
        raise HandfastBug("there is no session to hand over")
    if back.pending is not None:
        connection.relay.loop.remove_writer(connection.client.fileno())
    session = export(flow.contents, back.sealer, Peer(), bytes(back.pending or b""))
    back.sealer.closed = True
    return session


def _give_back(connection: Connection, session: Session) -> None:
    """Put a session back that was taken and not sent."""
    flow, back = connection.to_target, connection.to_client
    if isinstance(flow, FromKernel):
        flow.inlet = KernelReader(
            connection.client, session.suite, session.read, session.role, session.received
        )
    else:
        flow.reader = RecordReader(session)
    if isinstance(back, ToKernel):
        back.outlet = KernelWriter(
            connection.client, session.suite, session.write, session.bytes_out
        )
    else:
        back.writer = RecordWriter(session)
    if session.unsent:
        back.hold(session.unsent)
