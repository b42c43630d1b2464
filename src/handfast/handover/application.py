"""The one message by which an application is given a client's session, and its answer.

It goes over a connection of its own (a Unix socket, SOCK_SEQPACKET), once, with the client's socket
beside it (SCM_RIGHTS). Programs in other languages read it, so it is documented byte by byte in
docs/applications.md, and nothing in it changes without a new version:

    magic "handfast" | version | flags | length of the facts, of the data, of the session
    the facts, as JSON | the data | the session, as `tls.session.encode` gives it

All numbers are big-endian. The data is what the client sent and what was opened already: it goes
before what the socket gives. The session is for who has to open or seal records, or to follow a key
change; where the kernel does all that, it can be left alone. Its peer is empty, for the facts say
all that, and more.

The application answers with `TAKEN`. From the moment that the message was sent, the session is the
application's or nobody's.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import Annotated, Final

import msgspec

from handfast.errors import HandfastError
from handfast.tls import session as sessions
from handfast.tls.keys import wipe
from handfast.tls.session import Peer, Session

MAGIC: Final = b"handfast"
VERSION: Final = 1
TAKEN: Final = b"taken\n"
MAX_MESSAGE: Final = 192 * 1024
"""Bytes of a message at most; below the default SO_SNDBUF, so that one always fits."""
MAX_DESCRIPTORS: Final = 4
"""For which a receiver has room; there is one, and what else comes has to be closed."""

_HEAD: Final = struct.Struct("!8sHHIII")


class Flags(IntFlag):
    """What the socket does by itself, and what the client has done."""

    READS_PLAIN = 1
    WRITES_PLAIN = 2
    ENDED = 4


_ALL: Final = Flags.READS_PLAIN | Flags.WRITES_PLAIN | Flags.ENDED

Port = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]


class Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a client and its connection; what does not apply is empty.

    `listen_ip` and `listen_port` are what the client connected to; `listener` is the name of the
    listener. `certificates` are the client's, DER, leaf first, verified: Base64 in the message.
    """

    client_ip: str = ""
    client_port: Port = 0
    listen_ip: str = ""
    listen_port: Port = 0
    listener: str = ""
    sni: str = ""
    alpn: str = ""
    tls_version: str = ""
    ciphersuite: str = ""
    group: str = ""
    resumed: bool = False
    certificates: tuple[bytes, ...] = ()


class Offer(msgspec.Struct, frozen=True):
    """A session on its way to an application, beside its socket."""

    facts: Facts
    session: Session
    data: bytes = b""

    def __repr__(self) -> str:
        """Show whose it is, and none of its bytes."""
        return f"Offer({self.facts.client_ip}, {self.session!r}, data={len(self.data)})"


_facts: Final = msgspec.json.Decoder(Facts)
_encoder: Final = msgspec.msgpack.Encoder()


def flags_of(session: Session) -> Flags:
    """Give what the message says of where the session is."""
    flags = Flags.READS_PLAIN if session.read.in_kernel else Flags(0)
    flags |= Flags.WRITES_PLAIN if session.write.in_kernel else Flags(0)
    return flags | (Flags.ENDED if session.read.closed else Flags(0))


def encode(offer: Offer) -> bytearray:
    """Encode for the application; raise HandfastError for what is too long.

    The result carries secrets: the caller wipes it.
    """
    facts = msgspec.json.encode(offer.facts)
    lead = _HEAD.size + len(facts) + len(offer.data)
    if lead > MAX_MESSAGE:
        raise _too_long(lead)
    # In its full length from the start: growing would leave copies of the secrets behind.
    message = bytearray(MAX_MESSAGE)
    _encoder.encode_into(msgspec.structs.replace(offer.session, peer=Peer()), message, lead)
    if len(message) > MAX_MESSAGE:
        wipe(message)
        raise _too_long(len(message))
    lengths = len(facts), len(offer.data), len(message) - lead
    message[:lead] = (
        _HEAD.pack(MAGIC, VERSION, flags_of(offer.session), *lengths) + facts + offer.data
    )
    return message


def _too_long(length: int) -> HandfastError:
    return HandfastError(f"{length} bytes for an application; {MAX_MESSAGE} is the limit")


def decode(message: bytes | bytearray | memoryview) -> Offer:
    """Read what `encode` wrote; raise HandfastError, which shows none of the bytes, for others."""
    if len(message) < _HEAD.size:
        raise HandfastError("message for an application is too short")
    magic, version, flags, *lengths = _HEAD.unpack_from(message)
    if magic != MAGIC or version != VERSION or flags & ~_ALL:
        raise HandfastError("message for an application of an unknown format")
    if _HEAD.size + sum(lengths) != len(message):
        raise HandfastError("message for an application is not as long as it says")
    facts, data, session = _parts(memoryview(message), lengths)
    offer = Offer(_decode_facts(facts), sessions.decode(session), bytes(data))
    if flags != flags_of(offer.session) or _has_ciphertext_of_the_kernels(offer.session):
        raise HandfastError("message for an application contradicts its session")
    return offer


def _has_ciphertext_of_the_kernels(session: Session) -> bool:
    """Tell whether there are records for the kernel, which cannot be given any."""
    unread = session.read.in_kernel and session.unread
    return bool(unread or (session.write.in_kernel and session.unsent))


def _parts(message: memoryview, lengths: list[int]) -> list[memoryview]:
    parts, start = [], _HEAD.size
    for length in lengths:
        parts.append(message[start : start + length])
        start += length
    return parts


def _decode_facts(data: memoryview) -> Facts:
    try:
        return _facts.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HandfastError(f"malformed message for an application: {error}") from None
