"""Encode and decode the hand-over message.

Layout: one byte of format, the listener's number (2 bytes, big-endian), the time at which the
connection was accepted (8 bytes, a double: seconds of CLOCK_MONOTONIC, which all processes of a
machine share), then the session as `tls.session.encode` gives it. The socket goes beside it as
SCM_RIGHTS. The receiver trusts the sender's honesty, both being our own processes, but not its
health: what does not decode is refused and its descriptors are closed.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from handfast.errors import HandfastError
from handfast.tls import session as sessions
from handfast.tls.session import Session

FORMAT: Final = 1
MAX_MESSAGE: Final = 192 * 1024
"""Bytes of a message at most; below the default SO_SNDBUF, so that one always fits."""

_HEAD: Final = struct.Struct("!BHd")


class Handover(msgspec.Struct, frozen=True):
    """A session on its way, with what the relay has to know beside it."""

    listener: int
    accepted: float
    session: Session


def encode(handover: Handover) -> bytes:
    """Encode for the channel; the result carries secrets."""
    head = _HEAD.pack(FORMAT, handover.listener, handover.accepted)
    return head + sessions.encode(handover.session)


def decode(data: memoryview) -> Handover:
    """Read what `encode` wrote; raise HandfastError for anything else."""
    if len(data) < _HEAD.size:
        raise HandfastError("hand-over message is too short")
    version, listener, accepted = _HEAD.unpack_from(data)
    if version != FORMAT:
        raise HandfastError(f"hand-over message of unknown format {version}")
    return Handover(listener, accepted, sessions.decode(data[_HEAD.size :]))
