"""What the supervisor and its children say to each other.

Over a SOCK_SEQPACKET pair for each child, one message a packet, MessagePack. Children are not
trusted: what one of them sends is parsed into these types or is a reason to replace it.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Final, TypeAlias

import msgspec

from handfast.errors import HandfastError

_MAX: Final = 1 << 16
_FD_SIZE: Final = array.array("i").itemsize


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A child does its work from now on."""


class Report(msgspec.Struct, frozen=True, tag=True):
    """A worker's counters, in answer to the Query of this number."""

    query: int
    counters: dict[str, int]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The template cannot load the certificates; each text says what to mend."""

    problems: tuple[str, ...]


class Spawned(msgspec.Struct, frozen=True, tag=True):
    """The template has forked acceptor `number`."""

    number: int
    pid: int


class Died(msgspec.Struct, frozen=True, tag=True):
    """Acceptor `number` has ended; `status` as `os.waitstatus_to_exitcode` gives it."""

    number: int
    pid: int
    status: int


class Query(msgspec.Struct, frozen=True, tag=True):
    """The supervisor asks for a Report."""

    query: int


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Take no new work, and end when the work in progress has ended."""


class End(msgspec.Struct, frozen=True, tag=True):
    """End the work in progress now, in order."""

    reason: str


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """The template is to fork acceptor `number`, whose end of a control pair comes along."""

    number: int


FromChild: TypeAlias = Ready | Report | Refused | Spawned | Died
ToChild: TypeAlias = Query | Drain | End | Spawn

_encoder: Final = msgspec.msgpack.Encoder()
_from_child: Final = msgspec.msgpack.Decoder(FromChild)
_to_child: Final = msgspec.msgpack.Decoder(ToChild)


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Make a pair: the supervisor's end, which never blocks, and the child's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def send(control: socket.socket, message: FromChild | ToChild, *descriptors: int) -> None:
    """Send one message; a receiver that is gone or stuck is dealt with by its own death."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    try:
        control.sendmsg([_encoder.encode(message)], ancillary if descriptors else [])
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        pass  # the pidfd, or EOF on the other end, tells of the death


def receive_from_child(control: socket.socket) -> FromChild | None:
    """Take one message; None when there is none. EOFError when the child has closed its end."""
    try:
        data = control.recv(_MAX)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        data = b""
    if not data:
        raise EOFError
    try:
        message: FromChild = _from_child.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HandfastError(f"malformed message from a child: {error}") from None
    return message


def receive_in_child(control: socket.socket) -> tuple[ToChild, list[int]]:
    """Take one message, and the descriptors with it. EOFError when the supervisor is gone."""
    try:
        data, ancillary, _, _ = control.recvmsg(
            _MAX, socket.CMSG_SPACE(4 * _FD_SIZE), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        data, ancillary = b"", []
    if not data:
        raise EOFError
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % _FD_SIZE])
    try:
        return _to_child.decode(data), list(descriptors)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise HandfastError(f"malformed message from the supervisor: {error}") from None
