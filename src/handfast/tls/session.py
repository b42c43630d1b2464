"""A TLS session as a value.

After the handshake, everything that protects a connection is a few hundred bytes. `Session` is
those bytes and what is known of the peer. It says nothing about sockets: a home (the user-space
record layer, the kernel, another process) takes the value together with the socket.

The invariant: a session is live in exactly one place. Whoever holds a live one (a handshake
engine, a pair of RecordReader and RecordWriter) gives it up when it exports the value, and raises
HandfastBug when it is used afterwards. Two live copies would seal two records under one nonce,
and AES-GCM then protects neither.

The encoding is MessagePack of the fields in order. What carries it between processes has a version
(`handover.message`), and the next version has to read this one's: so a field is only ever added,
behind all others and with a default, and none changes its meaning. The encoding carries secrets: it
is for descriptors between processes, never for a file or a log.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

import msgspec

from handfast.errors import HandfastBug, HandfastError
from handfast.tls.keys import SUITES, Suite, wipe

Uint64 = Annotated[int, msgspec.Meta(ge=0)]


class Role(IntEnum):
    """Which end of the session this is."""

    SERVER = 0
    CLIENT = 1


class Direction(msgspec.Struct, frozen=True, array_like=True):
    """The keys of one direction and how far it has come.

    `secret` is what `keys.traffic_key` takes. `sequence` is the number of the next record.
    `nonce` is the explicit nonce of the next record to be sealed, in the TLS 1.2 AES-GCM suites
    only: it is independent of the sequence number there (RFC 5288, section 3).

    Where the socket itself seals or opens (`in_kernel`), the kernel has the keys and counts.
    `secret` is then the next traffic secret, or empty where the kernel cannot change keys, and
    `blocks` is what was sealed under the present one, in AES blocks.
    """

    secret: bytearray
    sequence: Uint64 = 0
    nonce: Uint64 = 0
    closed: bool = False
    in_kernel: bool = False
    blocks: Uint64 = 0

    def __repr__(self) -> str:
        """Show the counters, never the secret."""
        where = ", in_kernel" if self.in_kernel else ""
        return f"Direction(sequence={self.sequence}, closed={self.closed}{where})"


class Received(msgspec.Struct, frozen=True, array_like=True):
    """How far the contents of the peer's records have come: see `content`.

    `count` is of bytes of data. `partial` is an opened handshake message of which the rest is in
    later records. `key_updates` counts those received since the last data, and `empty_run` the
    records since then that carried nothing. `update_requested` and `renegotiation_refused` say
    that the peer is owed an answer.
    """

    count: Uint64 = 0
    partial: bytes = b""
    key_updates: Uint64 = 0
    empty_run: Uint64 = 0
    update_requested: bool = False
    renegotiation_refused: bool = False

    def __repr__(self) -> str:
        """Show the count, never the bytes."""
        return f"Received({self.count})"


class Peer(msgspec.Struct, frozen=True, array_like=True):
    """What the handshake told about the peer and the connection.

    `certificates` is the chain that the peer sent and that was verified, DER, leaf first.
    `group` is the name of the key exchange as the engine gives it, empty when there was none.
    `key_algorithm` and `signature_algorithm` are of our own certificate: RSA2048 and RSA-SHA256.
    `dialled` is the address that the peer connected to, where that is not its socket's own: a
    PROXY header told it.
    """

    address: str = ""
    port: int = 0
    sni: str = ""
    alpn: str = ""
    group: str = ""
    resumed: bool = False
    certificates: tuple[bytes, ...] = ()
    key_algorithm: str = ""
    signature_algorithm: str = ""
    dialled: tuple[str, int] | None = None


class Session(msgspec.Struct, frozen=True, array_like=True):
    """An established TLS 1.2 or 1.3 session.

    `unread` is ciphertext that was read from the socket and not opened yet; `unsent` is sealed
    and waits to be written, and is never sealed again. `bytes_out` counts those of plaintext.
    """

    role: Role
    suite_code: int
    read: Direction
    write: Direction
    peer: Peer = Peer()
    unread: bytes = b""
    unsent: bytes = b""
    received: Received = Received()
    bytes_out: Uint64 = 0

    def __repr__(self) -> str:
        """Show what identifies the session; never a secret or its bytes."""
        return (
            f"Session({self.role.name.lower()}, {self.suite.name}, read={self.read.sequence}, "
            f"write={self.write.sequence}, unread={len(self.unread)}, unsent={len(self.unsent)})"
        )

    @property
    def suite(self) -> Suite:
        """The cipher suite, which also settles the protocol version."""
        return SUITES[self.suite_code]

    @property
    def version(self) -> int:
        """The protocol version as on the wire, 0x0303 or 0x0304."""
        return self.suite.version

    def wipe(self) -> None:
        """Overwrite the secrets; for who has put them into another home."""
        wipe(self.read.secret)
        wipe(self.write.secret)


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Session)


def encode(session: Session) -> bytes:
    """Encode a session for another process. The result carries its secrets."""
    return _ENCODER.encode(session)


def decode(data: bytes | memoryview) -> Session:
    """Read what `encode` wrote; raise HandfastError, which shows none of the bytes, for others."""
    try:
        session = _DECODER.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        # The text of the cause can name fields only, but the chain would keep the bytes alive.
        raise HandfastError(f"malformed session: {error}") from None
    except UnicodeDecodeError:
        raise HandfastError("malformed session: a text that is not UTF-8") from None
    check(session)
    return session


def check(session: Session) -> None:
    """Refuse, with HandfastError, what cannot be a session though its fields are of their types."""
    suite = SUITES.get(session.suite_code)
    if suite is None:
        raise HandfastError(f"session of an unknown cipher suite 0x{session.suite_code:04x}")
    length = suite.secret_length
    for direction in (session.read, session.write):
        if len(direction.secret) != length and (direction.secret or not direction.in_kernel):
            raise HandfastError("session with a secret of the wrong length")
        if (direction.sequence | direction.nonce | direction.blocks) >> 64:
            raise HandfastError("session with a counter beyond 64 bits")


class Consumed(HandfastBug):
    """A holder was used after its session had been exported."""

    def __init__(self) -> None:
        super().__init__("this session was exported; it lives elsewhere now")
