"""The receiving direction of a session: see `record` for the theory and the limits."""

from __future__ import annotations

from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag

from handfast.errors import PeerError
from handfast.tls.alerts import Alert
from handfast.tls.content import Content, fail
from handfast.tls.keys import IV_LENGTH, TLS12
from handfast.tls.record import (
    ALERT,
    APPLICATION_DATA,
    HANDSHAKE,
    HEADER,
    MAX_CIPHERTEXT_12,
    MAX_CIPHERTEXT_13,
    MAX_PLAINTEXT,
    SEQUENCE_LIMIT,
    TAG,
    refuse_kernels,
)
from handfast.tls.session import Session

_TYPES_12: Final = (APPLICATION_DATA, ALERT, HANDSHAKE)


class RecordReader(Content):
    """Opens the peer's records; what `Content` tells is to be looked at after each `open`."""

    __slots__ = ("_explicit", "unread")

    def __init__(self, session: Session) -> None:
        super().__init__(session.suite, session.read, session.role, session.received)
        refuse_kernels(session.read)
        self._explicit = IV_LENGTH - session.suite.fixed_iv
        self.unread = session.unread

    def missing(self) -> int:
        """Give how many bytes more end the record, or its header, that `unread` is the start of."""
        unread = self.unread
        if len(unread) < HEADER:
            return HEADER - len(unread)
        return HEADER + (unread[3] << 8 | unread[4]) - len(unread)

    def restore(self, buffer: memoryview) -> int:
        """Put what is left over from the last call at the start of `buffer`; give its length."""
        unread = self.unread
        if not unread:
            return 0
        length = len(unread)
        buffer[:length] = unread
        self.unread = b""
        return length

    def open(self, buffer: memoryview, length: int, out: memoryview) -> int:
        """Open every whole record in buffer[:length] into `out`; give the bytes of data.

        `buffer` starts with what `restore` put there; `out` is at least as long. Raises PeerError
        with the alert to send (RFC 8446, section 6.2); the session is then at its end.
        """
        if self.sequence > SEQUENCE_LIMIT:
            fail("the peer used up its sequence numbers", Alert.UNEXPECTED_MESSAGE)
        if self.closed:
            return 0  # data after close_notify is ignored (RFC 8446, section 6.1)
        if self.suite.version == TLS12:
            written, position = self._open_12(buffer, length, out)
        else:
            written, position = self._open_13(buffer, length, out)
        if position < length and not self.closed:
            self.unread = bytes(buffer[position:length])
        self.bytes += written
        return written

    def _open_13(self, buffer: memoryview, length: int, out: memoryview) -> tuple[int, int]:
        aead = self._aead or self._derive()
        position = written = 0
        while length - position >= HEADER:
            size = buffer[position + 3] << 8 | buffer[position + 4]
            start = position + HEADER
            end = start + size
            if buffer[position] != APPLICATION_DATA or not TAG <= size <= MAX_CIPHERTEXT_13:
                self._refuse_header(buffer[position], size, MAX_CIPHERTEXT_13)
            if end > length:
                break
            last = written + size - TAG
            try:
                aead.decrypt_into(
                    (self._iv ^ self.sequence).to_bytes(IV_LENGTH, "big"),
                    buffer[start:end],
                    buffer[position:start],
                    out[written:last],
                )
            except InvalidTag:
                raise _bad_record_mac() from None
            self.sequence += 1
            position = end
            last -= 1
            if out[last] == APPLICATION_DATA and not self._unusual and written < last:
                if last - written > MAX_PLAINTEXT:
                    fail("record of more than 16384 bytes", Alert.RECORD_OVERFLOW)
                written = last
                continue
            written = self._unusual_13(out, written, last)
            if self.closed:
                break
            aead = self._aead or self._derive()
        return written, position

    def _unusual_13(self, out: memoryview, start: int, last: int) -> int:
        """Take one opened record that is padded, empty, or not data; give the end of the data."""
        while last >= start and not out[last]:
            last -= 1
        if last < start:
            fail("record with no content type", Alert.UNEXPECTED_MESSAGE)
        return self._content(out[last], out, start, last)

    def _open_12(self, buffer: memoryview, length: int, out: memoryview) -> tuple[int, int]:
        aead = self._aead or self._derive()
        explicit = self._explicit
        overhead = explicit + TAG
        position = written = 0
        while length - position >= HEADER and not self.closed:
            kind = buffer[position]
            size = buffer[position + 3] << 8 | buffer[position + 4]
            start = position + HEADER
            end = start + size
            if kind not in _TYPES_12 or not overhead <= size <= MAX_CIPHERTEXT_12:
                self._refuse_header(kind, size, MAX_CIPHERTEXT_12)
            if end > length:
                break
            plain = size - overhead
            if explicit:
                nonce = int.from_bytes(buffer[start : start + explicit], "big")
            else:
                nonce = self.sequence
            aad = b"%b%b%b" % (
                self.sequence.to_bytes(8, "big"),
                bytes(buffer[position : position + 3]),
                plain.to_bytes(2, "big"),
            )
            try:
                aead.decrypt_into(
                    (self._iv ^ nonce).to_bytes(IV_LENGTH, "big"),
                    buffer[start + explicit : end],
                    aad,
                    out[written : written + plain],
                )
            except InvalidTag:
                raise _bad_record_mac() from None
            self.sequence += 1
            position = end
            written = self._content(kind, out, written, written + plain)
        return written, position

    def _refuse_header(self, kind: int, size: int, limit: int) -> NoReturn:
        if size > limit:
            fail(f"record of {size} bytes exceeds {limit}", Alert.RECORD_OVERFLOW)
        if kind != APPLICATION_DATA and (self.suite.version != TLS12 or kind not in _TYPES_12):
            fail(f"unprotected or unknown record of type {kind}", Alert.UNEXPECTED_MESSAGE)
        raise _bad_record_mac()  # too short to hold a tag


def _bad_record_mac() -> PeerError:
    return PeerError("a record does not authenticate", alert=Alert.BAD_RECORD_MAC)
