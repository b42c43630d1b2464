"""An application as the relay meets it, and the resolver that connects to it, both played here."""

from __future__ import annotations

import array
import socket
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from handfast.config import HandoffAddress, Service, Target
from handfast.handover.application import MAX_MESSAGE, TAKEN, Offer, decode
from handfast.relay import question
from handfast.relay.plan import Plan
from handfast.relay.question import NotFound, Open, Opened
from unit.relay.relaying import Relaying, listener_of, plan_of


class Application:
    """Listens at a path, and takes what comes when the test says so.

    `owner` and `doubt` are what the resolver finds about its socket.
    """

    def __init__(self, path: Path, user: str = "") -> None:
        self.owner = 0
        self.doubt = ""
        self.address = HandoffAddress(path=str(path), user=user)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.bind(str(path))
        self.sock.listen()
        self.sock.setblocking(False)

    def accepted(self, front: Relaying) -> socket.socket:
        """Wait for the relay's connection."""
        found: list[socket.socket] = []

        def accept() -> bool:
            try:
                found.append(self.sock.accept()[0])
            except BlockingIOError:
                return False
            return True

        resolving(front, lambda: found or accept(), owner=self.owner, doubt=self.doubt)
        found[0].setblocking(False)
        return found[0]

    def offer(self, front: Relaying) -> tuple[socket.socket, socket.socket, Offer]:
        """Wait for a session; give the connection that it came by, and its socket."""
        connection = self.accepted(front)
        sock, offer = received(front, connection)
        return connection, sock, offer

    def take(self, front: Relaying) -> tuple[socket.socket, Offer]:
        """Wait for a session, and say that it is taken."""
        connection, sock, offer = self.offer(front)
        with connection:
            connection.send(TAKEN)
        return sock, offer


def received(front: Relaying, connection: socket.socket) -> tuple[socket.socket, Offer]:
    """Wait for the message."""
    found: list[tuple[bytes, list[tuple[int, int, bytes]], int]] = []

    def take() -> bool:
        try:
            found.append(connection.recvmsg(MAX_MESSAGE, 64)[:3])
        except BlockingIOError:
            return False
        return True

    front.until(lambda: found or take())
    message, ancillary, flags = found[0]
    assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    [(_, _, data)] = ancillary
    [descriptor] = array.array("i", data)
    return socket.socket(fileno=descriptor), decode(message)


def resolving(
    front: Relaying, condition: Callable[[], object], *, owner: int = 0, doubt: str = ""
) -> None:
    """Play the resolver until the condition is true."""

    def done() -> object:
        asked = question.receive_question(front.answering)
        if isinstance(asked, Open):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with sock:
                try:
                    sock.connect(asked.path)
                except OSError as error:
                    answer: Opened | NotFound = NotFound(
                        asked.number, "cannot connect", error.strerror or ""
                    )
                    question.send(front.answering, answer)
                else:
                    sock.setblocking(False)
                    question.send(front.answering, Opened(asked.number, owner, doubt), sock)
        return condition()

    front.until(done)


def service_for(*applications: Application) -> Service:
    return Service(targets=tuple(Target(address=each.address) for each in applications))


def plan_for(*applications: Application, kernel_after: int | None = None) -> Plan:
    listener = listener_of(service_for(*applications))
    if kernel_after is not None:
        listener = replace(listener, kernel_after=kernel_after)
    return plan_of(listener)
