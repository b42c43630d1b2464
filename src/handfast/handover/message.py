"""Encode and decode the hand-over message.

Layout: one byte of format, one of kind, the listener's number and the generation of the
configuration (4 bytes each, big-endian), the time at which the connection was accepted (8 bytes, a
double: seconds of CLOCK_MONOTONIC, which all processes of a machine share), then, by kind,

- a session, as `tls.session.encode` gives it, fresh from its handshake;
- a Passthrough, a connection that is to be passed through, as MessagePack;
- an Established, a connection with its target, as MessagePack; or one without its bulk, which is
  what was read and not carried yet: that can be more than a packet has room for, and comes in a
  descriptor.

The sockets go beside it as SCM_RIGHTS: the client's, the target's, the bulk. The receiver trusts
the sender's honesty, both being our own processes, but not its health: what does not decode is
refused and its descriptors are closed.

During an upgrade, processes of two versions hand over to each other: the old ones write to the new.
So a format is read by its own version and by the next one. A field is only ever added behind all
others, with a default; whatever else changes needs a new format, as a new field does without which
the connection could not go on.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

import msgspec
from msgspec.structs import replace

from handfast.errors import HandfastError
from handfast.tls import session as sessions
from handfast.tls.session import Peer, Session

FORMAT: Final = 3
"""What this version writes."""
READS: Final = (FORMAT,)
"""What it reads: its own format and the one before; there was no upgrade before 3."""
MAX_MESSAGE: Final = 192 * 1024
"""Bytes of a message at most; below the default SO_SNDBUF, so that one always fits."""
MAX_BULK: Final = 1 << 20
"""Bytes of bulk at most: two directions, each with one batch and part of a record."""

_SESSION: Final = 0
_PASSTHROUGH: Final = 1
_ESTABLISHED: Final = 2
_WITHOUT_BULK: Final = 3
_HEAD: Final = struct.Struct("!BBIId")


class Passthrough(msgspec.Struct, frozen=True, array_like=True):
    """A connection whose TLS is the target's: who it is, and what was read of it (`unread`).

    Of the peer, the address and the name that its hello asks for are known.
    """

    peer: Peer
    unread: bytes


class Course(msgspec.Struct, frozen=True, array_like=True):
    """How far one direction has come: whether its source has `ended` in order, and what waits.

    `pending` is to be written to the sink as it is; None says that nothing waits, while empty bytes
    wait for room for what the kernel is to seal. `carried` counts bytes that nobody sealed.
    """

    ended: bool
    pending: bytes | None
    carried: int

    def __repr__(self) -> str:
        """Show the lengths, never the bytes."""
        return f"Course(ended={self.ended}, pending={len(self.pending or b'')})"


class Established(msgspec.Struct, frozen=True, array_like=True):
    """A connection between a client and its target, on its way from one relay to another.

    `peer` is the client. `client` is the session with it and `target` that with the target, each
    None without TLS. `state` is the relay's, `goal` what it knows the target by. `server` is what
    the log calls it; `logged` tells whether the end of the target and that of the client were
    logged. `touched` is when something happened last, and `detached` since when nobody looks, both
    like the time of acceptance.
    """

    peer: Peer
    client: Session | None
    target: Session | None
    to_target: Course
    to_client: Course
    state: str
    goal: bytes
    server: tuple[str, int]
    logged: tuple[bool, bool]
    touched: float
    detached: float


Burden: TypeAlias = Session | Passthrough | Established


class Handover(msgspec.Struct, frozen=True):
    """A session on its way, with what the relay has to know beside it.

    `generation` is that of the configuration by which the client may be here; 0 asks for a check.
    """

    listener: int
    generation: int
    accepted: float
    session: Burden

    def wipe(self) -> None:
        """Overwrite the secrets; for who has sent it."""
        if isinstance(self.session, Session):
            self.session.wipe()
        elif isinstance(self.session, Established):
            for each in (self.session.client, self.session.target):
                if each is not None:
                    each.wipe()


_Bulk: TypeAlias = tuple[bytes, bytes, bytes | None, bytes | None]

_encoder: Final = msgspec.msgpack.Encoder()
_passthrough: Final = msgspec.msgpack.Decoder(Passthrough)
_established: Final = msgspec.msgpack.Decoder(Established)
_bulk: Final = msgspec.msgpack.Decoder(_Bulk)


def encode_into(buffer: bytearray, handover: Handover) -> bytes | None:
    """Encode for the channel; the buffer has secrets then.

    Gives the bulk that is to go beside it, None where everything has room in the message.
    """
    _encode_into(buffer, handover)
    session = handover.session
    if len(buffer) <= MAX_MESSAGE or not isinstance(session, Established):
        return None
    _encode_into(buffer, replace(handover, session=_exchange_bulk(session, (b"", b"", None, None))))
    buffer[1] = _WITHOUT_BULK
    return _encoder.encode(_bulk_of(session))


def _encode_into(buffer: bytearray, handover: Handover) -> None:
    session = handover.session
    if isinstance(session, Session):
        kind = _SESSION
    else:
        kind = _PASSTHROUGH if isinstance(session, Passthrough) else _ESTABLISHED
    _encoder.encode_into(session, buffer, _HEAD.size)
    _HEAD.pack_into(
        buffer, 0, FORMAT, kind, handover.listener, handover.generation, handover.accepted
    )


def decode(data: memoryview) -> tuple[Handover, int]:
    """Read what `encode_into` wrote, and tell how many descriptors belong to it.

    Raises HandfastError for anything else. Where there is one descriptor more than sockets, the
    bulk is in it: see `with_bulk`.
    """
    if len(data) < _HEAD.size:
        raise HandfastError("hand-over message is too short")
    version, kind, listener, generation, accepted = _HEAD.unpack_from(data)
    if version not in READS or kind > _WITHOUT_BULK:
        raise HandfastError(f"hand-over message of unknown format {version}, kind {kind}")
    session = _decode(kind, data[_HEAD.size :])
    descriptors = 1 if kind < _ESTABLISHED else kind
    return Handover(listener, generation, accepted, session), descriptors


def _decode(kind: int, body: memoryview) -> Burden:
    if kind == _SESSION:
        return sessions.decode(body)
    try:
        if kind == _PASSTHROUGH:
            return _passthrough.decode(body)
        established = _established.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HandfastError(f"malformed hand-over: {error}") from None
    for each in (established.client, established.target):
        if each is not None:
            sessions.check(each)
    return established


def with_bulk(handover: Handover, data: bytes) -> Handover:
    """Put the bulk back that went beside a message. Raises HandfastError for what is none."""
    session = handover.session
    if not isinstance(session, Established):
        raise HandfastError("bulk beside a message that has none")
    try:
        return replace(handover, session=_exchange_bulk(session, _bulk.decode(data)))
    except (msgspec.DecodeError, RecursionError) as error:
        raise HandfastError(f"malformed bulk: {error}") from None


def _bulk_of(established: Established) -> _Bulk:
    client, target = established.client, established.target
    return (
        client.unread if client else b"",
        target.unread if target else b"",
        established.to_target.pending,
        established.to_client.pending,
    )


def _exchange_bulk(established: Established, bulk: _Bulk) -> Established:
    client, target = established.client, established.target
    return replace(
        established,
        client=replace(client, unread=bulk[0]) if client else None,
        target=replace(target, unread=bulk[1]) if target else None,
        to_target=replace(established.to_target, pending=bulk[2]),
        to_client=replace(established.to_client, pending=bulk[3]),
    )
