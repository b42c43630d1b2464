"""The channel of hand-over messages: one way, over a SOCK_SEQPACKET pair.

Message boundaries are kept and a message arrives whole with its descriptors or not at all, so
several processes may share the sending end. The supervisor keeps both ends open: what is in the
queue when a relay dies is taken by the one that replaces it. What was sent is the receiver's alone:
nothing is sent twice, and nobody waits for an answer.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Sequence
from typing import Final

from handfast.errors import HandfastError
from handfast.handover.message import (
    MAX_BULK,
    MAX_MESSAGE,
    Handover,
    decode,
    encode_into,
    with_bulk,
)

_FD_SIZE: Final = array.array("i").itemsize
_MOST: Final = 4  # descriptors that there is room for, in pairs
_ANCILLARY: Final = socket.CMSG_SPACE(_MOST * _FD_SIZE)
# ETOOMANYREFS: the user has RLIMIT_NOFILE descriptors on their way already (unix(7)).
# Plain integers: an operation on the enum's members takes a microsecond.
_NO_ROOM: Final = int(socket.MSG_CTRUNC)  # for the descriptors
_CUT_SHORT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_FULL: Final = {errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}
_buffer: Final = memoryview(bytearray(MAX_MESSAGE + 1))
_output: Final = bytearray()


def pair() -> tuple[socket.socket, socket.socket]:
    """Make a channel; give its sending and its receiving end, both non-blocking."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    receiver.shutdown(socket.SHUT_WR)
    sender.setblocking(False)
    receiver.setblocking(False)
    return sender, receiver


def send(channel: socket.socket, handover: Handover, *sockets: int) -> bool:
    """Send a message with its sockets; give False when the channel is full, for a later try.

    Raises OSError when the channel is broken, or no descriptor is free for what is too long. The
    caller closes its descriptors afterwards, and wipes the secrets.
    """
    bulk = encode_into(_output, handover)
    try:
        if bulk is None:
            return pass_on(channel, _output, sockets)
        descriptor = os.memfd_create("bulk")
        try:
            os.write(descriptor, bulk)
            return pass_on(channel, _output, (*sockets, descriptor))
        finally:
            os.close(descriptor)
    finally:
        _output[:] = bytes(len(_output))


def pass_on(channel: socket.socket, message: bytearray, descriptors: Sequence[int]) -> bool:
    """Send a message as `take` gave it, the bulk's descriptor behind the others; else as `send`."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    try:
        channel.sendmsg([message], ancillary)
    except OSError as error:
        if error.errno in _FULL:
            return False
        raise
    return True


def receive(channel: socket.socket) -> tuple[Handover, list[int]] | None:
    """Take one message and the sockets that came with it; None when there is none.

    Raises HandfastError for what is not a hand-over; its descriptors do not stay open. Raises
    OSError (EMFILE) for one that is lost because no descriptor was free.
    """
    taken = take(channel)
    if taken is None:
        return None
    message, descriptors = taken
    try:
        handover, count = decode(message)
        if len(descriptors) != count:
            raise HandfastError(f"hand-over with {len(descriptors)} descriptors, not {count}")
        if count > 2:
            handover = with_bulk(handover, os.pread(descriptors[2], MAX_BULK, 0))
            os.close(descriptors.pop())
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    finally:
        message[:] = bytes(len(message))  # it has secrets, and would keep them until the next
    return handover, descriptors


def take(channel: socket.socket) -> tuple[memoryview, list[int]] | None:
    """Take one message as it is, with its descriptors; None when there is none.

    It has secrets, and is to be overwritten before the next is taken. Raises as `receive`.
    """
    try:
        length, ancillary, flags, _ = channel.recvmsg_into(
            [_buffer], _ANCILLARY, socket.MSG_CMSG_CLOEXEC
        )
    except (BlockingIOError, InterruptedError):
        return None
    descriptors = _descriptors(ancillary)
    if flags & _CUT_SHORT:
        _buffer[:length] = bytes(length)
        for descriptor in descriptors:
            os.close(descriptor)
        if flags & _NO_ROOM and len(descriptors) < _MOST:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raise HandfastError("hand-over message cut short")
    return _buffer[:length], descriptors


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return list(found)
