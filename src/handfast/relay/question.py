"""What relays and the resolver say to each other, over a SOCK_SEQPACKET pair for each relay.

One MessagePack message a packet. A relay in its sandbox can neither look up a name nor open a
Unix socket's path, so it asks. An answer repeats the number of its question, and no number is used
twice on a channel, even by the relay that follows one that died. Neither side trusts the other:
what does not parse, or is too long, is refused, and its descriptors are closed.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from typing import Annotated, Final, TypeAlias

from msgspec import DecodeError, Meta, Struct, msgpack

from handfast.errors import HandfastError

MAX_MESSAGE: Final = 8192
MAX_ADDRESSES: Final = 64
"""Of one name; what a name has beyond them is not used."""

Number: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Port: TypeAlias = Annotated[int, Meta(ge=1, lt=1 << 16)]
Text: TypeAlias = Annotated[str, Meta(max_length=512)]
Place: TypeAlias = tuple[Text, Annotated[int, Meta(ge=0, lt=1 << 32)]]
"""An IP address, and the scope of an IPv6 one (the number of an interface), else 0."""


class Ask(Struct, frozen=True, tag=True):
    """Look up the addresses of a host; the port only says which target it is."""

    number: Number
    host: Text
    port: Port


class Connect(Struct, frozen=True, tag=True):
    """Connect to a Unix stream socket."""

    number: Number
    path: Text


class Open(Struct, frozen=True, tag=True):
    """Connect to the socket of an application that takes sessions; `user` is as in its target."""

    number: Number
    path: Text
    user: Annotated[str, Meta(max_length=256)] = ""


class Found(Struct, frozen=True, tag=True):
    """The addresses that an Ask asked for, the best first."""

    number: Number
    places: Annotated[tuple[Place, ...], Meta(min_length=1, max_length=MAX_ADDRESSES)]


class Connected(Struct, frozen=True, tag=True):
    """The socket that a Connect asked for comes along, non-blocking."""

    number: Number


class Opened(Struct, frozen=True, tag=True):
    """The socket that an Open asked for comes along, non-blocking.

    `owner` is the user whose the application may be, beside root, going by who could have put the
    socket there; -1 for nobody, and then `doubt` says why.
    """

    number: Number
    owner: Annotated[int, Meta(ge=-1, lt=1 << 32)] = -1
    doubt: Annotated[str, Meta(max_length=1024)] = ""


class NotFound(Struct, frozen=True, tag=True):
    """A question has no good answer. `reason` is of handfast, `description` of the system."""

    number: Number
    reason: str
    description: str = ""


Question: TypeAlias = Ask | Connect | Open
Answer: TypeAlias = Found | Connected | Opened | NotFound

_FULL: Final = {errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}
_ANCILLARY: Final = socket.CMSG_SPACE(4 * array.array("i").itemsize)
_encoder: Final = msgpack.Encoder()
_questions: Final = msgpack.Decoder(Question)
_answers: Final = msgpack.Decoder(Answer)


def pair() -> tuple[socket.socket, socket.socket]:
    """Make a channel; give the relay's end and the resolver's, both non-blocking."""
    asking, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asking.setblocking(False)
    answering.setblocking(False)
    return asking, answering


def send(
    channel: socket.socket, message: Question | Answer, sock: socket.socket | None = None
) -> bool:
    """Send a message, with a copy of a socket or without; give False when the channel is full.

    Raises OSError when the other end is gone.
    """
    descriptors = array.array("i", () if sock is None else (sock.fileno(),))
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if descriptors else []
    try:
        channel.sendmsg([_encoder.encode(message)], ancillary)
    except OSError as error:
        if error.errno in _FULL:
            return False
        raise
    return True


def receive_question(channel: socket.socket) -> Question | None:
    """Take one question; None when there is none.

    Raises EOFError when the other end is gone, and HandfastError for what is no question.
    """
    taken = _receive(channel)
    if taken is None:
        return None
    data, descriptors = taken
    _close(descriptors)
    try:
        question: Question = _questions.decode(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise HandfastError(f"malformed question of a relay: {error}") from None
    return question


def receive_answer(channel: socket.socket) -> tuple[Answer, int] | None:
    """Take one answer and its descriptor, which is -1 without one; None when there is none.

    Only Connected and Opened have one. Raises EOFError when the other end is gone, and
    HandfastError for what is no answer.
    """
    taken = _receive(channel)
    if taken is None:
        return None
    data, descriptors = taken
    try:
        answer: Answer = _answers.decode(data)
        if len(descriptors) != isinstance(answer, Connected | Opened):
            raise HandfastError(f"an answer of the resolver came with {len(descriptors)} sockets")
    except (DecodeError, UnicodeDecodeError) as error:
        _close(descriptors)
        raise HandfastError(f"malformed answer of the resolver: {error}") from None
    except HandfastError:
        _close(descriptors)
        raise
    return answer, descriptors[0] if descriptors else -1


def _receive(channel: socket.socket) -> tuple[bytes, list[int]] | None:
    try:
        data, ancillary, flags, _ = channel.recvmsg(
            MAX_MESSAGE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return None
    except ConnectionResetError:
        data, ancillary, flags = b"", [], 0
    if not data:
        raise EOFError
    found = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        _close(list(found))
        raise HandfastError("a message between a relay and the resolver was cut short")
    return data, list(found)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
