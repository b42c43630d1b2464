"""The line from each actor to the stage: what it says, and what it is told to do.

A SOCK_SEQPACKET pair, so that a message arrives whole. It is of the demonstration only: a server
without an audience has none of it.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

_ROOM: Final = 1 << 18


class Said(Struct, tag=True, frozen=True):
    """Something for the audience."""

    text: str


class Ready(Struct, tag=True, frozen=True):
    """A port that can be connected to."""

    port: int


class Sent(Struct, tag=True, frozen=True):
    """The client's secret, and whether the server's answer shows that it has it."""

    secret: bytes
    arrived: bool


class Recorded(Struct, tag=True, frozen=True):
    """What the man in the middle has, of each direction."""

    to_server: bytes
    to_client: bytes


class Outcome(Struct, frozen=True):
    """Whether something was reached, and what the kernel said if not."""

    reached: bool
    refusal: str = ""


class Tried(Struct, tag=True, frozen=True):
    """What a process could reach, and as which user."""

    uid: int
    outcomes: dict[str, Outcome]


class Try(Struct, frozen=True):
    """The order to try everything: on which file, port and process, and what to look for.

    `needles` are disguised: see `memory`.
    """

    key_file: str
    port: int
    other: int
    needles: dict[str, tuple[bytes, ...]]


Message: TypeAlias = Said | Ready | Sent | Recorded | Tried


class Report(Struct, frozen=True):
    """A message, with who sent it and when (seconds of CLOCK_MONOTONIC)."""

    pid: int
    at: float
    message: Message


_orders: Final = msgspec.msgpack.Decoder(Try)
_reports: Final = msgspec.msgpack.Decoder(Report)


class Line:
    """The actor's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Be something that `select` and `fork` take."""
        return self._sock.fileno()

    def say(self, text: str) -> None:
        """Tell the audience."""
        self.tell(Said(text))

    def tell(self, message: Message) -> None:
        """Tell the stage."""
        self._sock.send(msgspec.msgpack.encode(Report(os.getpid(), time.monotonic(), message)))

    def hear(self) -> Try | None:
        """Wait for the next order; None is the end of the show. The stage has the deadline."""
        data = self._sock.recv(_ROOM)
        return _orders.decode(data) if data else None

    def close(self) -> None:
        """Be none of this process's."""
        self._sock.close()


class Prompter:
    """The stage's end. `dismissed` tells that the actor may go."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.dismissed = False

    def fileno(self) -> int:
        """Be something that `select` takes."""
        return self._sock.fileno()

    def order(self, order: Try) -> None:
        """Have the actor do something."""
        self._sock.send(msgspec.msgpack.encode(order))

    def hear(self) -> Report | None:
        """Take the next report; None when the actor has gone."""
        try:
            data = self._sock.recv(_ROOM)
        except ConnectionResetError:  # it went with an order unread
            return None
        return _reports.decode(data) if data else None

    def dismiss(self) -> None:
        """Tell the actor that its part is over; what it still says is heard."""
        self.dismissed = True
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Hear no more."""
        self._sock.close()


def pair() -> tuple[Prompter, Line]:
    """Make a line."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Prompter(ours), Line(theirs)
