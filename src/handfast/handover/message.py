"""Encode and decode the hand-over message.

Layout: one byte of format, one of kind, the listener's number and the generation of the
configuration (4 bytes each, big-endian), the time at which the connection was accepted (8 bytes, a
double: seconds of CLOCK_MONOTONIC, which all processes of a machine share), then the session as
`tls.session.encode` gives it or, for a connection that is passed through, its Passthrough as
MessagePack. The socket goes beside it as SCM_RIGHTS. The receiver trusts the sender's honesty, both
being our own processes, but not its health: what does not decode is refused and its descriptors
are closed.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from handfast.errors import HandfastError
from handfast.tls import session as sessions
from handfast.tls.session import Peer, Session

FORMAT: Final = 2
MAX_MESSAGE: Final = 192 * 1024
"""Bytes of a message at most; below the default SO_SNDBUF, so that one always fits."""

_SESSION: Final = 0
_PASSTHROUGH: Final = 1
_HEAD: Final = struct.Struct("!BBIId")


class Passthrough(msgspec.Struct, frozen=True, array_like=True):
    """A connection whose TLS is the target's: who it is, and what was read of it (`unread`).

    Of the peer, the address and the name that its hello asks for are known.
    """

    peer: Peer
    unread: bytes


class Handover(msgspec.Struct, frozen=True):
    """A session on its way, with what the relay has to know beside it.

    `generation` is that of the configuration under which the client was let in.
    """

    listener: int
    generation: int
    accepted: float
    session: Session | Passthrough


_passthrough: Final = msgspec.msgpack.Decoder(Passthrough)


def encode(handover: Handover) -> bytes:
    """Encode for the channel; the result carries secrets."""
    session = handover.session
    through = isinstance(session, Passthrough)
    kind = _PASSTHROUGH if through else _SESSION
    head = _HEAD.pack(FORMAT, kind, handover.listener, handover.generation, handover.accepted)
    if isinstance(session, Passthrough):
        return head + msgspec.msgpack.encode(session)
    return head + sessions.encode(session)


def decode(data: memoryview) -> Handover:
    """Read what `encode` wrote; raise HandfastError for anything else."""
    if len(data) < _HEAD.size:
        raise HandfastError("hand-over message is too short")
    version, kind, listener, generation, accepted = _HEAD.unpack_from(data)
    if version != FORMAT or kind not in (_SESSION, _PASSTHROUGH):
        raise HandfastError(f"hand-over message of unknown format {version}, kind {kind}")
    body = data[_HEAD.size :]
    if kind == _SESSION:
        return Handover(listener, generation, accepted, sessions.decode(body))
    try:
        return Handover(listener, generation, accepted, _passthrough.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HandfastError(f"malformed passthrough: {error}") from None
