"""The kernel as the home of a session: it seals and opens the records of a TCP socket (kTLS).

Theory. A TCP socket gets the "tls" upper layer protocol, and then, each on its own, the keys to
send with (TLS_TX) and those to receive with (TLS_RX). What is written from then on is plaintext,
which the kernel seals; what is read was opened by it. Records that are no data are written and read
with their content type beside them (a control message). Sources: linux/tls.h and
Documentation/networking/tls.rst of the kernel; RFC 8446, section 5; RFC 5288, section 3.

Invariants:

- A move is made where one record ends and the next begins: what was read before was opened before,
  and what was sealed before was written before. What waits in the socket is the kernel's.
- It succeeds as a whole, and consumes the user-space half, or changes nothing.
- Afterwards no memory of this process that is ours has the secret or the keys. Where the kernel can
  change keys (Linux 6.14), the *next* traffic secret is kept, from which the one in use cannot be
  computed; else nothing is.

Limits. Before Linux 6.14 a KeyUpdate cannot be followed, and ends the connection. The kernel does
not tell how many records it makes, so the limit of AES-GCM is kept in blocks, of which it really
is (RFC 8446, section 5.5, gives it as full records). TLS_RX_EXPECT_NO_PAD is never set.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final, Self

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from handfast.errors import PeerError
from handfast.tls.alerts import Alert, alert_body
from handfast.tls.content import Content
from handfast.tls.keys import TLS13, Suite, next_secret, traffic_key, wipe
from handfast.tls.reader import RecordReader
from handfast.tls.record import (
    ALERT,
    HANDSHAKE,
    MAX_PLAINTEXT,
    Keyed,
    key_update_body,
)
from handfast.tls.session import Direction, Received, Role
from handfast.tls.writer import RecordWriter, ends_direction

TCP_ULP: Final = 31
SOL_TLS: Final = 282
TLS_TX: Final = 1
TLS_RX: Final = 2
_SET_RECORD_TYPE: Final = 1
_GET_RECORD_TYPE: Final = 2
_ANCILLARY: Final = socket.CMSG_SPACE(1)

# TLS_CIPHER_AES_GCM_128, TLS_CIPHER_AES_GCM_256, TLS_CIPHER_CHACHA20_POLY1305
_CIPHERS: Final[dict[tuple[type, int], int]] = {
    (AESGCM, 16): 51,
    (AESGCM, 32): 52,
    (ChaCha20Poly1305, 32): 54,
}
_SALT: Final = 4
_BLOCK: Final = 16
_BLOCKS_OF_A_CALL: Final = 20
"""What the records of one call take beyond its data: five of them at most (see `pipes`), each with
a block that is not full, and those of the tag."""
BLOCK_LIMIT: Final = (1 << 34) - (1 << 24)
"""AES blocks under one key: those of 2^24 full records, with room for what is on its way."""


NO_DATA: Final = frozenset({errno.EIO, errno.EINVAL})
"""What reading says of a record that is no data; EINVAL also of one that is none."""

_PROBLEMS: Final = {
    errno.EBADMSG: ("a record does not authenticate", Alert.BAD_RECORD_MAC),
    errno.EMSGSIZE: ("a record is too long", Alert.RECORD_OVERFLOW),
    errno.EINVAL: ("unprotected or unknown record", Alert.UNEXPECTED_MESSAGE),
}


def problem(error: OSError) -> PeerError | None:
    """Say what is wrong with a record that the kernel cannot open; None for any other error."""
    found = _PROBLEMS.get(error.errno or 0)
    return PeerError(found[0], alert=found[1]) if found else None


class Support(msgspec.Struct, frozen=True):
    """What the kernel was seen to do: the cipher suites that it sends and receives, by code.

    `rekey` tells that it can follow a KeyUpdate. `missing` says why it does nothing at all.
    """

    tx: frozenset[int] = frozenset()
    rx: frozenset[int] = frozenset()
    rekey: bool = False
    missing: str = ""


def enable(sock: socket.socket) -> None:
    """Give a connected TCP socket the TLS layer, still without keys: bytes pass as they are.

    Loads the kernel's module where this process may (CAP_NET_ADMIN). Raises OSError: ENOENT
    without the module, ENOTCONN when the peer has closed.
    """
    sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")


def cipher_of(suite: Suite) -> int:
    """Give the kernel's number for the cipher of a suite; suites of one cipher are alike to it."""
    return _CIPHERS[suite.aead, suite.key_length]


def crypto_info(
    suite: Suite, key: bytearray, iv: bytearray, sequence: int, nonce: int
) -> bytearray:
    """Encode the struct of linux/tls.h that has the keys of one direction; the caller wipes it.

    `nonce` is the next explicit nonce of TLS 1.2 AES-GCM, which the kernel counts on from there.
    """
    head = struct.pack("=HH", suite.version, cipher_of(suite))
    number = sequence.to_bytes(8, "big")
    if suite.is_gcm:
        explicit = iv[_SALT:] if suite.version == TLS13 else nonce.to_bytes(8, "big")
        parts: tuple[bytes | bytearray, ...] = (head, explicit, key, iv[:_SALT], number)
    else:
        parts = (head, iv, key, number)
    info = bytearray(sum(map(len, parts)))
    place = 0
    for part in parts:
        info[place : place + len(part)] = part
        place += len(part)
    return info


def _install(
    sock: socket.socket,
    direction: int,
    suite: Suite,
    keys: tuple[bytearray, bytearray],
    sequence: int = 0,
    nonce: int = 0,
) -> None:
    key, iv = keys
    info = crypto_info(suite, key, iv, sequence, nonce)
    try:
        sock.setsockopt(SOL_TLS, direction, info)
    finally:
        wipe(key)
        wipe(iv)
        wipe(info)


def install(sock: socket.socket, direction: int, keyed: Keyed, nonce: int = 0) -> None:
    """Give the kernel the keys of TLS_TX or TLS_RX, which `keyed` still has; raises OSError."""
    _install(sock, direction, keyed.suite, keyed.traffic_key(), keyed.sequence, nonce)


def _successor(suite: Suite, secret: bytearray, *, rekey: bool) -> bytearray:
    """Wipe the secret in use; give the next one if it can be of use, else nothing."""
    can = rekey and suite.version == TLS13
    following = next_secret(suite, secret) if can else bytearray()
    wipe(secret)
    return following


def _moved(suite: Suite, before: Direction, *, rekey: bool) -> Direction:
    """Describe a direction that the kernel has just taken, and wipe what it was before."""
    following = _successor(suite, before.secret, rekey=rekey)
    blocks = before.sequence * (MAX_PLAINTEXT // _BLOCK)
    return Direction(following, closed=before.closed, in_kernel=True, blocks=blocks)


def _install_next(
    sock: socket.socket, direction: int, suite: Suite, secret: bytearray
) -> bytearray:
    """Have the kernel go on with the next secret; give the one after it. Raises PeerError."""
    if not secret:
        raise PeerError("a key update, which this kernel cannot follow", alert=Alert.INTERNAL_ERROR)
    try:
        _install(sock, direction, suite, traffic_key(suite, secret))
    except OSError as error:
        reason = f"a key update, which the kernel did not follow: {error.strerror or error}"
        raise PeerError(reason, alert=Alert.INTERNAL_ERROR) from None
    return _successor(suite, secret, rekey=True)


class KernelReader(Content):
    """The peer's direction of a session, opened by the kernel.

    Data is read from the socket as from any other. When that fails because a record that is no data
    is next (EIO from recv, EINVAL from splice), `receive` takes it.
    """

    __slots__ = ("_sock",)

    def __init__(
        self,
        sock: socket.socket,
        suite: Suite,
        direction: Direction,
        role: Role,
        received: Received,
    ) -> None:
        """Go on with a direction that is in the kernel already, with this socket."""
        super().__init__(suite, direction, role, received)
        self._sock = sock

    @classmethod
    def move(cls, sock: socket.socket, reader: RecordReader, *, rekey: bool) -> Self:
        """Take the place of `reader`, which has nothing unread; OSError, and nothing changes."""
        install(sock, TLS_RX, reader)
        received, direction = reader.received, _moved(reader.suite, reader.export(), rekey=rekey)
        made = cls(sock, reader.suite, direction, reader.role, received)
        wipe(direction.secret)
        return made

    def export(self) -> Direction:
        """Give this direction away, beside its socket; it can do nothing from then on."""
        return Direction(self.consume(), closed=self.closed, in_kernel=True)

    def _rekey(self) -> None:
        self._secret = _install_next(self._sock, TLS_RX, self.suite, self._secret)

    def data(self, count: int) -> None:
        """Take note of so many bytes of data, read from the socket. Raises PeerError."""
        self.bytes += count
        self._data(count)

    def receive(self, buffer: memoryview) -> tuple[int, int]:
        """Read of one record; give its content type and length. The type is 0 at the end (FIN).

        Raises OSError: EAGAIN without a whole record, and what `problem` explains.
        """
        room = buffer[:MAX_PLAINTEXT]
        length, ancillary, _, _ = self._sock.recvmsg_into([room], _ANCILLARY)
        for level, kind, data in ancillary:
            if level == SOL_TLS and kind == _GET_RECORD_TYPE and data:
                return data[0], length
        return 0, length

    def take(self, kind: int, buffer: memoryview, length: int) -> int:
        """Take the content that was received; give the length of data. Raises PeerError."""
        length = self._content(kind, buffer, 0, length)
        self.bytes += length
        return length


class KernelWriter(Keyed):
    """Our direction of a session, sealed by the kernel.

    Data is written to the socket as to any other, and told to `account`. The methods that write
    raise OSError (EAGAIN, too: nothing was written then), or PeerError where the kernel cannot go
    on.
    """

    __slots__ = ("_blocks", "_sock", "bytes", "closed")

    def __init__(self, sock: socket.socket, suite: Suite, direction: Direction, count: int) -> None:
        """Go on with a direction that is in the kernel already, after `count` bytes of data."""
        super().__init__(suite, direction)
        self._sock = sock
        self.bytes = count
        self.closed = direction.closed
        self._blocks = direction.blocks

    @classmethod
    def move(cls, sock: socket.socket, writer: RecordWriter, *, rekey: bool) -> Self:
        """Take the place of `writer`; raises OSError, and nothing has changed then."""
        install(sock, TLS_TX, writer, writer.nonce)
        direction = _moved(writer.suite, writer.export(), rekey=rekey)
        made = cls(sock, writer.suite, direction, writer.bytes)
        wipe(direction.secret)
        return made

    def export(self) -> Direction:
        """Give this direction away, beside its socket; it can do nothing from then on."""
        return Direction(self.consume(), closed=self.closed, in_kernel=True, blocks=self._blocks)

    def account(self, count: int) -> None:
        """Take note of so many bytes of data, written with one call."""
        self.bytes += count
        self._blocks += count // _BLOCK + _BLOCKS_OF_A_CALL

    def keep_limits(self) -> None:
        """Change keys when these have sealed as much as they may; call it before data."""
        if self._blocks < BLOCK_LIMIT or not self.suite.is_gcm:
            return
        if not self._secret:
            reason = "the key has sealed as much as it may"
            raise PeerError(reason, alert=Alert.INTERNAL_ERROR)
        self.key_update(request=False)

    def _send(self, kind: int, body: bytes) -> None:
        self._sock.sendmsg([body], [(SOL_TLS, _SET_RECORD_TYPE, bytes((kind,)))])
        self._blocks += _BLOCKS_OF_A_CALL

    def alert(self, alert: int) -> None:
        """Send an alert. All but warnings, and close_notify too, end this direction."""
        self._send(ALERT, alert_body(alert))
        self.closed = self.closed or ends_direction(alert)

    def key_update(self, *, request: bool) -> None:
        """Send a KeyUpdate and move to the next key (RFC 8446, section 4.6.3)."""
        if not self._secret:
            raise PeerError(
                "a key update, which this kernel cannot answer", alert=Alert.INTERNAL_ERROR
            )
        self._send(HANDSHAKE, key_update_body(request=request))
        self._secret = _install_next(self._sock, TLS_TX, self.suite, self._secret)
        self._blocks = 0
