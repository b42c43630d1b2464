"""The channel of hand-over messages: one way, over a SOCK_SEQPACKET pair.

Message boundaries are kept and a message arrives whole with its descriptor or not at all, so
several acceptors may share the sending end. The supervisor keeps both ends open: what is in the
queue when a relay dies is taken by the one that replaces it.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from typing import Final

from handfast.errors import HandfastError
from handfast.handover.message import MAX_MESSAGE, Handover, decode, encode

_FD_SIZE: Final = array.array("i").itemsize
_ANCILLARY: Final = socket.CMSG_SPACE(4 * _FD_SIZE)
# ETOOMANYREFS: the user has RLIMIT_NOFILE descriptors on their way already (unix(7)).
_FULL: Final = {errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}
_buffer: Final = memoryview(bytearray(MAX_MESSAGE + 1))


def pair() -> tuple[socket.socket, socket.socket]:
    """Make a channel; give its sending and its receiving end, both non-blocking."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    receiver.shutdown(socket.SHUT_WR)
    sender.setblocking(False)
    receiver.setblocking(False)
    return sender, receiver


def send(channel: socket.socket, handover: Handover, descriptor: int) -> bool:
    """Send a message with its socket; give False when the channel is full, for a later try.

    Raises OSError when the channel is broken. The caller closes its descriptor afterwards.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (descriptor,)))]
    try:
        channel.sendmsg([encode(handover)], ancillary)
    except OSError as error:
        if error.errno in _FULL:
            return False
        raise
    return True


def receive(channel: socket.socket) -> tuple[Handover, int] | None:
    """Take one message and the descriptor that came with it; None when there is none.

    Raises HandfastError for what is not a hand-over; its descriptors do not stay open. Raises
    OSError (EMFILE) for one that is lost because no descriptor was free.
    """
    try:
        length, ancillary, flags, _ = channel.recvmsg_into(
            [_buffer], _ANCILLARY, socket.MSG_CMSG_CLOEXEC
        )
    except (BlockingIOError, InterruptedError):
        return None
    descriptors = _descriptors(ancillary)
    try:
        if flags & socket.MSG_CTRUNC and not descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(descriptors) != 1:
            raise HandfastError("hand-over message cut short, or not with one descriptor")
        handover = decode(_buffer[:length])
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    finally:
        _buffer[:length] = bytes(length)  # it has secrets, and would keep them until the next
    return handover, descriptors[0]


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return list(found)
