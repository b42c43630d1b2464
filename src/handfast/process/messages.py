"""What the supervisor and its children say to each other.

Over a SOCK_SEQPACKET pair for each child, one message a packet, MessagePack. Children are not
trusted: what one of them sends is parsed into these types or is a reason to replace it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

from handfast.errors import HandfastError
from handfast.observe.counters import Counts
from handfast.observe.status import CertificateExpiry

T = TypeVar("T")
_MAX: Final = 1 << 17
MOST_DESCRIPTORS: Final = 64
"""Of one message; the kernel's limit is 253 (SCM_MAX_FD)."""
_FD_SIZE: Final = array.array("i").itemsize
_SO_PASSRIGHTS: Final = 83  # asm-generic/socket.h, Linux 6.16
# ETOOMANYREFS: the user has RLIMIT_NOFILE descriptors on their way already (unix(7)).
_FULL: Final = {errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}
_GONE: Final = {errno.EPIPE, errno.ECONNRESET}

Pid: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
"""A process, 0 for none: never a group of them, as negative numbers mean to kill(2)."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A child does its work from now on."""


class Report(msgspec.Struct, frozen=True, tag=True):
    """What a worker has counted, in answer to the Query of this number, or unasked at its end."""

    query: int
    counters: Counts


class StatusRequest(msgspec.Struct, frozen=True, tag=True):
    """The monitor asks for the status."""

    number: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The template cannot load what its configuration names; each text says what to mend."""

    problems: tuple[str, ...]


class Proved(msgspec.Struct, frozen=True, tag=True):
    """A program that is to take our place has proved itself."""

    version: str


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The template has loaded everything; the relays' plan comes along, in a sealed memfd."""

    certificates: tuple[CertificateExpiry, ...]


class Configured(msgspec.Struct, frozen=True, tag=True):
    """A relay goes by this generation's plan from now on."""

    generation: int


class GivenAway(msgspec.Struct, frozen=True, tag=True):
    """A relay has given so many connections away, as it was told to."""

    count: int


class Spawned(msgspec.Struct, frozen=True, tag=True):
    """The template has forked acceptor `number`."""

    number: int
    pid: Pid


class Died(msgspec.Struct, frozen=True, tag=True):
    """Acceptor `number` has ended; `status` as `os.waitstatus_to_exitcode` gives it."""

    number: int
    pid: Pid
    status: Annotated[int, msgspec.Meta(ge=-128, le=255)]


class Query(msgspec.Struct, frozen=True, tag=True):
    """The supervisor asks for a Report."""

    query: int


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Take no new work, and end when the work in progress has ended."""


class End(msgspec.Struct, frozen=True, tag=True):
    """End the work in progress now, in order."""

    reason: str


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """The template is to fork acceptor `number`, whose end of a control pair comes along.

    `column` is its own in the census.
    """

    number: int
    column: int


class Kill(msgspec.Struct, frozen=True, tag=True):
    """The template is to kill acceptor `number`, its child, whose pid is safe there."""

    number: int


class Configure(msgspec.Struct, frozen=True, tag=True):
    """A relay is to go by this generation's plan, which comes along in a memfd."""

    generation: int


class Take(msgspec.Struct, frozen=True, tag=True):
    """A relay is to take sessions in from now on."""


class GiveAway(msgspec.Struct, frozen=True, tag=True):
    """A relay is to give connections to those whose channels come along, and to tell when it has.

    With `most` None all that it has; it takes no more in, and ends behind the last.
    """

    most: int | None = None


class Serve(msgspec.Struct, frozen=True, tag=True):
    """The resolver is to serve the targets that come along, in a sealed memfd, and no others.

    There can be more than a packet has room for: see `resolving.seal_targets`.
    """


class Reopen(msgspec.Struct, frozen=True, tag=True):
    """The log was opened anew; its descriptor comes along."""


class StatusReply(msgspec.Struct, frozen=True, tag=True):
    """The status that StatusRequest `number` asked for comes along, as JSON in a memfd."""

    number: int


FromChild: TypeAlias = (
    Ready
    | Report
    | StatusRequest
    | Refused
    | Proved
    | Loaded
    | Configured
    | GivenAway
    | Spawned
    | Died
)
ToChild: TypeAlias = (
    Query | StatusReply | Drain | End | Spawn | Kill | Configure | Take | GiveAway | Serve | Reopen
)

_encoder: Final = msgspec.msgpack.Encoder()
_from_child: Final = msgspec.msgpack.Decoder(FromChild)
_to_child: Final = msgspec.msgpack.Decoder(ToChild)


def control_pair(*, takes_descriptors: bool = True) -> tuple[socket.socket, socket.socket]:
    """Make a pair: the supervisor's end, which never blocks, and the child's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    if not takes_descriptors:
        refuse_descriptors(ours)
    return ours, theirs


def refuse_descriptors(sock: socket.socket) -> None:
    """Let nobody send descriptors to this end, where the kernel can do that (SO_PASSRIGHTS).

    Who receives one has to close it, and closing a socket that lingers blocks.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def send(control: socket.socket, message: FromChild | ToChild, *descriptors: int) -> bool:
    """Send one message; False when it is lost, the receiver being gone or stuck.

    A pidfd, or EOF on the other end, tells of a death. Who is stuck has 200 KB to read first.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    try:
        control.sendmsg([_encoder.encode(message)], ancillary if descriptors else [])
    except OSError as error:
        if error.errno in _FULL or error.errno in _GONE:
            return False
        raise
    return True


def receive_from_child(control: socket.socket) -> tuple[FromChild, list[int]] | None:
    """Take one message, and the descriptors with it; None when there is none.

    EOFError when the child has closed its end, HandfastError for what is no message.
    """
    try:
        return _receive(control, _from_child)
    except BlockingIOError:
        return None


def receive_in_child(control: socket.socket) -> tuple[ToChild, list[int]]:
    """Take one message, and the descriptors with it. EOFError when the supervisor is gone."""
    return _receive(control, _to_child)


def _receive(control: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> tuple[T, list[int]]:
    try:
        data, ancillary, _, _ = control.recvmsg(
            _MAX, socket.CMSG_SPACE(MOST_DESCRIPTORS * _FD_SIZE), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        data, ancillary = b"", []
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % _FD_SIZE])
    try:
        if not data:
            raise EOFError
        return decoder.decode(data), list(descriptors)
    except (EOFError, msgspec.DecodeError, UnicodeDecodeError) as error:
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(error, EOFError):
            raise
        raise HandfastError(f"malformed message: {error}") from None
