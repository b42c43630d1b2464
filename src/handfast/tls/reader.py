"""The receiving direction of a session: see `record` for the theory and the limits."""

from __future__ import annotations

from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag

from handfast.errors import PeerError
from handfast.tls.alerts import WARNING, Alert, alert_name
from handfast.tls.keys import IV_LENGTH, TLS12
from handfast.tls.record import (
    ALERT,
    APPLICATION_DATA,
    HANDSHAKE,
    HEADER,
    KEY_UPDATE,
    MAX_CIPHERTEXT_12,
    MAX_CIPHERTEXT_13,
    MAX_PLAINTEXT,
    SEQUENCE_LIMIT,
    TAG,
    Keyed,
)
from handfast.tls.session import Direction, Role, Session

MAX_EMPTY_RUN: Final = 32
MAX_KEY_UPDATES: Final = 32

_TYPES_12: Final = (APPLICATION_DATA, ALERT, HANDSHAKE)

_HELLO_REQUEST: Final = 0
_CLIENT_HELLO: Final = 1
_NEW_SESSION_TICKET: Final = 4


def _fail(reason: str, alert: Alert | None) -> NoReturn:
    raise PeerError(reason, alert=alert)


class RecordReader(Keyed):
    """Opens the peer's records.

    After each `open`: `closed` tells that close_notify came; `update_requested` that the peer
    wants a KeyUpdate before our next data; `renegotiation_refused` that a TLS 1.2 peer is owed a
    no_renegotiation alert. The caller clears the latter two when it has answered.
    """

    __slots__ = (
        "_empty_run",
        "_explicit",
        "_key_updates",
        "_partial",
        "_unusual",
        "bytes",
        "closed",
        "renegotiation_refused",
        "role",
        "unread",
        "update_requested",
    )

    def __init__(self, session: Session) -> None:
        super().__init__(session.suite, session.read)
        self.role = session.role
        self._explicit = IV_LENGTH - session.suite.fixed_iv
        self._partial = session.partial
        self._key_updates = session.key_updates
        self._empty_run = 0
        self._unusual = bool(self._partial or self._key_updates)
        self.unread = session.unread
        self.bytes = session.bytes_in
        self.closed = session.read.closed
        self.update_requested = False
        self.renegotiation_refused = False

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
            _fail("the peer used up its sequence numbers", Alert.UNEXPECTED_MESSAGE)
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
                    _fail("record of more than 16384 bytes", Alert.RECORD_OVERFLOW)
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
            _fail("record with no content type", Alert.UNEXPECTED_MESSAGE)
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
            _fail(f"record of {size} bytes exceeds {limit}", Alert.RECORD_OVERFLOW)
        if kind != APPLICATION_DATA and (self.suite.version != TLS12 or kind not in _TYPES_12):
            _fail(f"unprotected or unknown record of type {kind}", Alert.UNEXPECTED_MESSAGE)
        raise _bad_record_mac()  # too short to hold a tag

    def _content(self, kind: int, out: memoryview, start: int, end: int) -> int:
        """Take one opened record of any kind; give the end of the data in `out`."""
        if end - start > MAX_PLAINTEXT:
            _fail("record of more than 16384 bytes", Alert.RECORD_OVERFLOW)
        if kind == APPLICATION_DATA:
            self._data(end - start)
            return end
        if start == end:
            _fail("empty alert or handshake record", Alert.UNEXPECTED_MESSAGE)
        body = bytes(out[start:end])
        if kind == ALERT:
            self._alert(body)
        elif kind == HANDSHAKE:
            self._handshake(body)
        else:
            _fail(f"record of unexpected type {kind}", Alert.UNEXPECTED_MESSAGE)
        return start

    def _data(self, length: int) -> None:
        if self._partial:
            _fail("data inside a handshake message", Alert.UNEXPECTED_MESSAGE)
        if length:
            self._empty_run = self._key_updates = 0
            self._unusual = False
        else:
            self._carried_nothing()

    def _carried_nothing(self) -> None:
        self._empty_run += 1
        self._unusual = True
        if self._empty_run > MAX_EMPTY_RUN:
            _fail(f"more than {MAX_EMPTY_RUN} records with no data", Alert.UNEXPECTED_MESSAGE)

    def _alert(self, body: bytes) -> None:
        if self._partial:
            _fail("alert inside a handshake message", Alert.UNEXPECTED_MESSAGE)
        if len(body) != 2:
            _fail("malformed alert", Alert.DECODE_ERROR)
        level, description = body
        if description == Alert.CLOSE_NOTIFY:
            self.closed = True
            return
        ignorable = description == Alert.USER_CANCELED or (
            self.suite.version == TLS12 and level == WARNING
        )
        if not ignorable:
            _fail(f"the peer sent alert {alert_name(description)}", None)
        self._carried_nothing()

    def _handshake(self, body: bytes) -> None:
        self._unusual = True
        body = self._partial + body
        self._partial = b""
        while body:
            length = int.from_bytes(body[1:4], "big")
            self._check_message(body[0], length if len(body) >= 4 else None)
            if len(body) < 4 + length or len(body) < 4:
                self._partial = body
                return
            message, body = body[: 4 + length], body[4 + length :]
            self._message(message, last=not body)

    def _check_message(self, kind: int, length: int | None) -> None:
        """Refuse a message by its first four bytes, before the rest of it is kept."""
        if self.suite.version == TLS12:
            expected = _CLIENT_HELLO if self.role is Role.SERVER else _HELLO_REQUEST
            known = kind == expected
        else:
            known = kind == KEY_UPDATE or (kind == _NEW_SESSION_TICKET and self.role is Role.CLIENT)
        if not known:
            _fail(f"unexpected handshake message {kind}", Alert.UNEXPECTED_MESSAGE)
        if length is None:
            return
        if kind == KEY_UPDATE and length != 1:
            _fail("malformed KeyUpdate", Alert.DECODE_ERROR)
        if length > 1 << 16:
            _fail("handshake message of more than 65536 bytes", Alert.DECODE_ERROR)

    def _message(self, message: bytes, *, last: bool) -> None:
        if self.suite.version == TLS12:
            self.renegotiation_refused = True
            self._carried_nothing()
        elif message[0] == KEY_UPDATE:
            self._key_update(message[4], last=last)
        # A NewSessionTicket needs nothing: handfast's client role does not resume.

    def _key_update(self, request: int, *, last: bool) -> None:
        if request > 1:
            _fail("KeyUpdate asks for neither 0 nor 1", Alert.ILLEGAL_PARAMETER)
        if not last:
            _fail("KeyUpdate does not end its record", Alert.UNEXPECTED_MESSAGE)
        self._key_updates += 1
        if self._key_updates > MAX_KEY_UPDATES:
            _fail(f"more than {MAX_KEY_UPDATES} KeyUpdates", Alert.UNEXPECTED_MESSAGE)
        self._rekey()
        if request:
            self.update_requested = True

    @property
    def key_updates(self) -> int:
        """KeyUpdates received since the last data."""
        return self._key_updates

    @property
    def partial(self) -> bytes:
        """The opened start of a handshake message that goes on in the next record."""
        return self._partial

    def export(self) -> Direction:
        """Give this direction away, for `export.export`; it can do nothing from then on."""
        return Direction(self.consume(), self.sequence, 0, self.closed)


def _bad_record_mac() -> PeerError:
    return PeerError("a record does not authenticate", alert=Alert.BAD_RECORD_MAC)
