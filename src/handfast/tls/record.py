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

Limits: RFC 8446, sections 4.6.3, 5.1, 5.2, 5.4, 5.5; RFC 5246, section 6.2; and runs of records
that carry nothing are bounded, for each costs the peer little and us a decryption.
"""

from __future__ import annotations

from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag

from handfast.errors import HandfastBug, PeerError
from handfast.tls.alerts import WARNING, Alert, alert_body, alert_name
from handfast.tls.keys import IV_LENGTH, TLS12, Aead, Suite, next_secret, traffic_key
from handfast.tls.session import Consumed, Direction, Peer, Role, Session

HEADER: Final = 5
TAG: Final = 16
MAX_PLAINTEXT: Final = 1 << 14
MAX_CIPHERTEXT_13: Final = MAX_PLAINTEXT + 256
MAX_CIPHERTEXT_12: Final = MAX_PLAINTEXT + 2048
MAX_OVERHEAD: Final = HEADER + 8 + TAG
"""Bytes that sealing adds to one record at most (TLS 1.2 AES-GCM; TLS 1.3 adds 22)."""

MAX_EMPTY_RUN: Final = 32
MAX_KEY_UPDATES: Final = 32
GCM_RECORD_LIMIT: Final = (1 << 24) - 64
"""Records under one AES-GCM key (RFC 8446, section 5.5, with room for one batch and alerts)."""

_SEQUENCE_LIMIT: Final = (1 << 64) - (1 << 17)

_CHANGE_CIPHER_SPEC: Final = 20
_ALERT: Final = 21
_HANDSHAKE: Final = 22
_DATA: Final = 23

_HELLO_REQUEST: Final = 0
_CLIENT_HELLO: Final = 1
_NEW_SESSION_TICKET: Final = 4
_KEY_UPDATE: Final = 24

_FULL_HEADER_13: Final = b"\x17\x03\x03" + (MAX_PLAINTEXT + 1 + TAG).to_bytes(2, "big")


def room_for(length: int) -> int:
    """Give the bytes of output that sealing `length` bytes can take, a KeyUpdate included."""
    records = (length + MAX_PLAINTEXT - 1) // MAX_PLAINTEXT + 1
    return length + records * MAX_OVERHEAD


def _fail(reason: str, alert: Alert | None) -> NoReturn:
    raise PeerError(reason, alert=alert)


class _Keyed:
    """One direction's secret and what is derived from it while it is in use."""

    __slots__ = ("_aead", "_exported", "_iv", "_secret", "sequence", "suite")

    def __init__(self, suite: Suite, direction: Direction) -> None:
        self.suite = suite
        self.sequence = direction.sequence
        self._secret = direction.secret
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
        return self._aead

    def _rekey(self) -> None:
        self._secret = next_secret(self.suite, self._secret)
        self._aead = None
        self.sequence = 0

    def park(self) -> None:
        """Forget the derived keys; the next record derives them again."""
        self._aead = None

    def _consume(self) -> bytes:
        if self._exported:
            raise Consumed
        secret, self._secret = self._secret, b""
        self._aead = None
        self._exported = True
        return secret


class RecordReader(_Keyed):
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
        "_role",
        "_unusual",
        "bytes",
        "closed",
        "renegotiation_refused",
        "unread",
        "update_requested",
    )

    def __init__(self, session: Session) -> None:
        super().__init__(session.suite, session.read)
        self._role = session.role
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
        if self.sequence > _SEQUENCE_LIMIT:
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
            if buffer[position] != _DATA or not TAG <= size <= MAX_CIPHERTEXT_13:
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
            if out[last] == _DATA and not self._unusual and written < last:
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
            if kind not in (_DATA, _ALERT, _HANDSHAKE) or not overhead <= size <= MAX_CIPHERTEXT_12:
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
        plain_kinds = (_DATA, _ALERT, _HANDSHAKE) if self.suite.version == TLS12 else (_DATA,)
        if kind not in plain_kinds:
            _fail(f"unprotected or unknown record of type {kind}", Alert.UNEXPECTED_MESSAGE)
        raise _bad_record_mac()  # too short to hold a tag

    def _content(self, kind: int, out: memoryview, start: int, end: int) -> int:
        """Take one opened record of any kind; give the end of the data in `out`."""
        if end - start > MAX_PLAINTEXT:
            _fail("record of more than 16384 bytes", Alert.RECORD_OVERFLOW)
        if kind == _DATA:
            self._data(end - start)
            return end
        if start == end:
            _fail("empty alert or handshake record", Alert.UNEXPECTED_MESSAGE)
        body = bytes(out[start:end])
        if kind == _ALERT:
            self._alert(body)
        elif kind == _HANDSHAKE:
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
            expected = _CLIENT_HELLO if self._role is Role.SERVER else _HELLO_REQUEST
            known = kind == expected
        else:
            known = kind == _KEY_UPDATE or (
                kind == _NEW_SESSION_TICKET and self._role is Role.CLIENT
            )
        if not known:
            _fail(f"unexpected handshake message {kind}", Alert.UNEXPECTED_MESSAGE)
        if length is None:
            return
        if kind == _KEY_UPDATE and length != 1:
            _fail("malformed KeyUpdate", Alert.DECODE_ERROR)
        if length > 1 << 16:
            _fail("handshake message of more than 65536 bytes", Alert.DECODE_ERROR)

    def _message(self, message: bytes, *, last: bool) -> None:
        if self.suite.version == TLS12:
            self.renegotiation_refused = True
            self._carried_nothing()
        elif message[0] == _KEY_UPDATE:
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

    def _export(self) -> Direction:
        return Direction(self._consume(), self.sequence, 0, self.closed)


def _bad_record_mac() -> PeerError:
    return PeerError("a record does not authenticate", alert=Alert.BAD_RECORD_MAC)


class RecordWriter(_Keyed):
    """Seals our records. `closed` tells that close_notify, or a fatal alert, was sealed."""

    __slots__ = ("_explicit", "bytes", "closed", "nonce")

    def __init__(self, session: Session) -> None:
        super().__init__(session.suite, session.write)
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
        written = self._keep_limits(out)
        if self.suite.version == TLS12:
            written = self._seal_12(buffer, length, out, written)
        else:
            written = self._seal_13(buffer, length, out, written)
        self.bytes += length
        return written

    def _keep_limits(self, out: memoryview) -> int:
        limit = GCM_RECORD_LIMIT if self.suite.is_gcm else _SEQUENCE_LIMIT
        if self.sequence < limit:
            return 0
        if self.suite.version == TLS12:
            _fail("the TLS 1.2 key has sealed as much as it may", Alert.INTERNAL_ERROR)
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
            buffer[end] = _DATA
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
            written = self._seal_one_12(_DATA, buffer[position:end], out, written)
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
        if alert not in (Alert.USER_CANCELED, Alert.NO_RENEGOTIATION):
            self.closed = True
        return self._seal_one(_ALERT, alert_body(alert))

    def key_update(self, *, request: bool) -> bytes:
        """Seal a KeyUpdate and move to the next key (RFC 8446, section 4.6.3)."""
        sealed = self._seal_one(_HANDSHAKE, bytes((_KEY_UPDATE, 0, 0, 1, request)))
        self._rekey()
        return sealed

    def _export(self) -> Direction:
        return Direction(self._consume(), self.sequence, self.nonce, self.closed)


def export(reader: RecordReader, writer: RecordWriter, peer: Peer, unsent: bytes = b"") -> Session:
    """Take the session out of its two directions, which can do nothing from then on.

    `unsent` is what was sealed and not written to the socket yet. Raises Consumed when the
    session was taken before. A KeyUpdate that is still owed must be sealed into `unsent` first.
    """
    if reader.update_requested or reader.renegotiation_refused:
        raise HandfastBug("the peer is owed an answer; seal it before the export")
    return Session(
        role=reader._role,
        suite_code=reader.suite.code,
        read=reader._export(),
        write=writer._export(),
        peer=peer,
        unread=reader.unread,
        unsent=unsent,
        partial=reader.partial,
        key_updates=reader.key_updates,
        bytes_in=reader.bytes,
        bytes_out=writer.bytes,
    )
