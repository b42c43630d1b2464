"""The record layer: opens and seals TLS 1.2 and 1.3 records in the caller's buffers.

Theory. One RecordReader and one RecordWriter are a live session's two directions. Each call works
on a batch, whatever one `recv` brought or one `send` will take, because a call of Python costs as
much as the cipher does for a small record. Nothing is allocated per record but slices and the
nonce; the shared buffers belong to the caller, who also does all the reading and writing.

Invariants:

- a sequence number is used once. It is advanced only here, and `export` takes it away for good.
- `open` leaves no whole record unopened: what is left over is the start of one record.
- data is handed out in the order and the amount in which it was authenticated, and none that
  comes after close_notify.
- one answer to every record that does not authenticate, whatever is wrong with it.

Keys are derived when first needed, and `park` forgets them again until the next record: a
context of OpenSSL's for one key takes 2.5 KB (measured), which idle connections need not hold.
Whatever is not needed any more is wiped: a key once OpenSSL has it, a secret that has a successor.

Limits: RFC 8446, sections 4.6.3, 5.1, 5.2, 5.4, 5.5; RFC 5246, section 6.2; and runs of records
that carry nothing are bounded, for each costs the peer little and us a decryption.
"""

from __future__ import annotations

from typing import Final

from handfast.errors import HandfastBug
from handfast.tls.keys import IV_LENGTH, Aead, Suite, next_secret, traffic_key, wipe
from handfast.tls.session import Consumed, Direction

HEADER: Final = 5
TAG: Final = 16
MAX_PLAINTEXT: Final = 1 << 14
MAX_CIPHERTEXT_13: Final = MAX_PLAINTEXT + 256
MAX_CIPHERTEXT_12: Final = MAX_PLAINTEXT + 2048
GCM_RECORD_LIMIT: Final = (1 << 24) - 64
"""Records under one AES-GCM key (RFC 8446, section 5.5, with room for one batch and alerts)."""
SEQUENCE_LIMIT: Final = (1 << 64) - (1 << 17)
"""Records under any key: the sequence number must not wrap within a batch."""

# ContentType (RFC 8446, section 5.1); plain integers, for the hot path compares them.
CHANGE_CIPHER_SPEC: Final = 20
ALERT: Final = 21
HANDSHAKE: Final = 22
APPLICATION_DATA: Final = 23

KEY_UPDATE: Final = 24
"""HandshakeType of the one message that both directions of TLS 1.3 know after the handshake."""


def key_update_body(*, request: bool) -> bytes:
    """Encode a KeyUpdate message (RFC 8446, section 4.6.3)."""
    return bytes((KEY_UPDATE, 0, 0, 1, request))


def refuse_kernels(direction: Direction) -> None:
    """Refuse a direction that the kernel protects: there is nothing here to do for its records."""
    if direction.in_kernel:
        raise HandfastBug("the kernel protects the records of this direction")


class Keyed:
    """One direction's secret and what is derived from it while it is in use.

    The secret is a copy: whoever has made both directions of a session wipes the value.
    """

    __slots__ = ("_aead", "_exported", "_iv", "_secret", "sequence", "suite")

    def __init__(self, suite: Suite, direction: Direction) -> None:
        self.suite = suite
        self.sequence = direction.sequence
        self._secret = bytearray(direction.secret)
        self._aead: Aead | None = None
        self._iv = 0
        self._exported = False

    def _derive(self) -> Aead:
        if self._exported:
            raise Consumed
        key, iv = traffic_key(self.suite, self._secret)
        # The salt of TLS 1.2 AES-GCM stands in front of the nonce that travels in the record.
        self._iv = int.from_bytes(iv.ljust(IV_LENGTH, b"\0"), "big")
        self._aead = self.suite.aead(key)
        wipe(key)
        return self._aead

    def _rekey(self) -> None:
        following = next_secret(self.suite, self._secret)
        wipe(self._secret)
        self._secret = following
        self._aead = None
        self.sequence = 0

    def traffic_key(self) -> tuple[bytearray, bytearray]:
        """Give (key, iv) for a home that seals or opens by itself; the receiver wipes them."""
        if self._exported:
            raise Consumed
        return traffic_key(self.suite, self._secret)

    def park(self) -> None:
        """Forget the derived keys; the next record derives them again."""
        self._aead = None

    def forget(self) -> None:
        """Overwrite the secret; nothing can be opened or sealed from then on."""
        wipe(self._secret)
        self._aead = None
        self._exported = True

    def consume(self) -> bytearray:
        """Give the secret away; nothing can be opened or sealed from then on."""
        if self._exported:
            raise Consumed
        secret, self._secret = self._secret, bytearray()
        self._aead = None
        self._exported = True
        return secret
