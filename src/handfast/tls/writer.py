"""The sending direction of a session: see `record` for the theory and the limits."""

from __future__ import annotations

from typing import Final

from handfast.errors import HandfastBug, PeerError
from handfast.tls.alerts import Alert, alert_body
from handfast.tls.keys import IV_LENGTH, TLS12
from handfast.tls.record import (
    ALERT,
    APPLICATION_DATA,
    GCM_RECORD_LIMIT,
    HANDSHAKE,
    HEADER,
    MAX_PLAINTEXT,
    SEQUENCE_LIMIT,
    TAG,
    Keyed,
    key_update_body,
    refuse_kernels,
)
from handfast.tls.session import Direction, Session

MAX_OVERHEAD: Final = HEADER + 8 + TAG
"""Bytes that sealing adds to one record at most (TLS 1.2 AES-GCM; TLS 1.3 adds 22)."""

_FULL_HEADER_13: Final = b"\x17\x03\x03" + (MAX_PLAINTEXT + 1 + TAG).to_bytes(2, "big")


def room_for(length: int) -> int:
    """Give the bytes of output that sealing `length` bytes can take, a KeyUpdate included."""
    records = (length + MAX_PLAINTEXT - 1) // MAX_PLAINTEXT + 1
    return length + records * MAX_OVERHEAD


def ends_direction(alert: int) -> bool:
    """Tell whether nothing may follow an alert of ours: all are such, but for two warnings."""
    return alert not in (Alert.USER_CANCELED, Alert.NO_RENEGOTIATION)


class RecordWriter(Keyed):
    """Seals our records. `closed` tells that close_notify, or a fatal alert, was sealed."""

    __slots__ = ("_explicit", "bytes", "closed", "nonce")

    def __init__(self, session: Session) -> None:
        super().__init__(session.suite, session.write)
        refuse_kernels(session.write)
        self.nonce = session.write.nonce
        self._explicit = IV_LENGTH - session.suite.fixed_iv
        self.bytes = session.bytes_out
        self.closed = session.write.closed

    def seal(self, buffer: memoryview, length: int, out: memoryview) -> int:
        """Seal buffer[:length] into `out` as records of up to 16 KB; give the bytes written.

        `buffer` has one byte to spare behind `length`, which TLS 1.3 needs for the content type
        and which is put back; `out` has `room_for(length)`. In TLS 1.3 a KeyUpdate goes first
        when the key is near its limit; TLS 1.2 cannot, and raises PeerError there.
        """
        if self.closed:
            raise HandfastBug("data after close_notify")
        written = self._keep_limits(out) if self.sequence >= GCM_RECORD_LIMIT else 0
        if self.suite.version == TLS12:
            written = self._seal_12(buffer, length, out, written)
        else:
            written = self._seal_13(buffer, length, out, written)
        self.bytes += length
        return written

    def _keep_limits(self, out: memoryview) -> int:
        limit = GCM_RECORD_LIMIT if self.suite.is_gcm else SEQUENCE_LIMIT
        if self.sequence < limit:
            return 0
        if self.suite.version == TLS12:
            reason = "the TLS 1.2 key has sealed as much as it may"
            raise PeerError(reason, alert=Alert.INTERNAL_ERROR)
        update = self.key_update(request=False)
        out[: len(update)] = update
        return len(update)

    def _seal_13(self, buffer: memoryview, length: int, out: memoryview, written: int) -> int:
        aead = self._aead or self._derive()
        position = 0
        while position < length:
            end = min(position + MAX_PLAINTEXT, length)
            size = end - position + 1 + TAG
            header = (
                _FULL_HEADER_13
                if size == MAX_PLAINTEXT + 1 + TAG
                else b"\x17\x03\x03" + size.to_bytes(2, "big")
            )
            body = written + HEADER
            out[written:body] = header
            written = body + size
            spared = buffer[end]
            buffer[end] = APPLICATION_DATA
            aead.encrypt_into(
                (self._iv ^ self.sequence).to_bytes(IV_LENGTH, "big"),
                buffer[position : end + 1],
                header,
                out[body:written],
            )
            buffer[end] = spared
            self.sequence += 1
            position = end
        return written

    def _seal_12(self, buffer: memoryview, length: int, out: memoryview, written: int) -> int:
        position = 0
        while position < length:
            end = min(position + MAX_PLAINTEXT, length)
            written = self._seal_one_12(APPLICATION_DATA, buffer[position:end], out, written)
            position = end
        return written

    def _seal_one_12(
        self, kind: int, body: bytes | memoryview, out: memoryview, written: int
    ) -> int:
        aead = self._aead or self._derive()
        length = len(body)
        aad = self.sequence.to_bytes(8, "big") + bytes((kind, 3, 3)) + length.to_bytes(2, "big")
        size = self._explicit + length + TAG
        out[written : written + HEADER] = bytes((kind, 3, 3)) + size.to_bytes(2, "big")
        start = written + HEADER + self._explicit
        written = start + length + TAG
        if self._explicit:
            nonce = self.nonce
            out[start - self._explicit : start] = nonce.to_bytes(8, "big")
            self.nonce = (nonce + 1) & 0xFFFFFFFFFFFFFFFF
        else:
            nonce = self.sequence
        aead.encrypt_into(
            (self._iv ^ nonce).to_bytes(IV_LENGTH, "big"), body, aad, out[start:written]
        )
        self.sequence += 1
        return written

    def _seal_one(self, kind: int, body: bytes) -> bytes:
        if self.suite.version == TLS12:
            out = bytearray(len(body) + MAX_OVERHEAD)
            written = self._seal_one_12(kind, body, memoryview(out), 0)
            return bytes(out[:written])
        aead = self._aead or self._derive()
        size = len(body) + 1 + TAG
        out = bytearray(b"\x17\x03\x03" + size.to_bytes(2, "big")) + bytes(size)
        nonce = (self._iv ^ self.sequence).to_bytes(IV_LENGTH, "big")
        aead.encrypt_into(nonce, body + bytes((kind,)), out[:HEADER], memoryview(out)[HEADER:])
        self.sequence += 1
        return bytes(out)

    def alert(self, alert: int) -> bytes:
        """Seal an alert. All but warnings, and close_notify too, end this direction."""
        if self.closed:
            raise HandfastBug("alert after close_notify")
        if ends_direction(alert):
            self.closed = True
        return self._seal_one(ALERT, alert_body(alert))

    def key_update(self, *, request: bool) -> bytes:
        """Seal a KeyUpdate and move to the next key (RFC 8446, section 4.6.3)."""
        sealed = self._seal_one(HANDSHAKE, key_update_body(request=request))
        self._rekey()
        return sealed

    def export(self) -> Direction:
        """Give this direction away, for `export.export`; it can do nothing from then on."""
        return Direction(self.consume(), self.sequence, self.nonce, self.closed)
