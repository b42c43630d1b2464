"""What the records of one direction carry, once they are opened: data, alerts, handshake messages.

Every home of a session has to know it, whoever opens the records: the record layer in user space,
and the kernel, which opens them itself and gives the contents of those that are no data. See
`record` for the limits.
"""

from __future__ import annotations

from typing import Final, NoReturn

from handfast.errors import PeerError
from handfast.tls.alerts import WARNING, Alert, alert_name
from handfast.tls.keys import TLS12, Suite
from handfast.tls.record import (
    ALERT,
    APPLICATION_DATA,
    HANDSHAKE,
    KEY_UPDATE,
    MAX_PLAINTEXT,
    Keyed,
)
from handfast.tls.session import Direction, Received, Role

MAX_EMPTY_RUN: Final = 32
MAX_KEY_UPDATES: Final = 32

_HELLO_REQUEST: Final = 0
_CLIENT_HELLO: Final = 1
_NEW_SESSION_TICKET: Final = 4


def fail(reason: str, alert: Alert | None) -> NoReturn:
    """Blame the peer."""
    raise PeerError(reason, alert=alert)


class Content(Keyed):
    """Takes the contents of the peer's records, in order.

    `closed` tells that close_notify came; `update_requested` that the peer wants a KeyUpdate before
    our next data; `renegotiation_refused` that a TLS 1.2 peer is owed a no_renegotiation alert. The
    caller clears the latter two when it has answered. `bytes` counts the data.
    """

    __slots__ = (
        "_empty_run",
        "_key_updates",
        "_partial",
        "_unusual",
        "bytes",
        "closed",
        "renegotiation_refused",
        "role",
        "update_requested",
    )

    def __init__(self, suite: Suite, direction: Direction, role: Role, received: Received) -> None:
        super().__init__(suite, direction)
        self.role = role
        self.bytes = received.count
        self.closed = direction.closed
        self.update_requested = received.update_requested
        self.renegotiation_refused = received.renegotiation_refused
        self._partial = received.partial
        self._key_updates = received.key_updates
        self._empty_run = received.empty_run
        self._unusual = bool(received.partial or received.key_updates or received.empty_run)

    @property
    def received(self) -> Received:
        """How far it has come, for the next home of the session."""
        return Received(
            self.bytes,
            self._partial,
            self._key_updates,
            self._empty_run,
            self.update_requested,
            self.renegotiation_refused,
        )

    def export(self) -> Direction:
        """Give this direction away, for `export.export`; it can do nothing from then on."""
        return Direction(self.consume(), self.sequence, 0, self.closed)

    def _content(self, kind: int, out: memoryview, start: int, end: int) -> int:
        """Take one opened record of any kind; give the end of the data in `out`."""
        if end - start > MAX_PLAINTEXT:
            fail("record of more than 16384 bytes", Alert.RECORD_OVERFLOW)
        if kind == APPLICATION_DATA:
            self._data(end - start)
            return end
        if start == end:
            fail("empty alert or handshake record", Alert.UNEXPECTED_MESSAGE)
        body = bytes(out[start:end])
        if kind == ALERT:
            self._alert(body)
        elif kind == HANDSHAKE:
            self._handshake(body)
        else:
            fail(f"record of unexpected type {kind}", Alert.UNEXPECTED_MESSAGE)
        return start

    def _data(self, length: int) -> None:
        if self._partial:
            fail("data inside a handshake message", Alert.UNEXPECTED_MESSAGE)
        if length:
            self._empty_run = self._key_updates = 0
            self._unusual = False
        else:
            self._carried_nothing()

    def _carried_nothing(self) -> None:
        self._empty_run += 1
        self._unusual = True
        if self._empty_run > MAX_EMPTY_RUN:
            fail(f"more than {MAX_EMPTY_RUN} records with no data", Alert.UNEXPECTED_MESSAGE)

    def _alert(self, body: bytes) -> None:
        if self._partial:
            fail("alert inside a handshake message", Alert.UNEXPECTED_MESSAGE)
        if len(body) != 2:
            fail("malformed alert", Alert.DECODE_ERROR)
        level, description = body
        if description == Alert.CLOSE_NOTIFY:
            self.closed = True
            return
        ignorable = description == Alert.USER_CANCELED or (
            self.suite.version == TLS12 and level == WARNING
        )
        if not ignorable:
            fail(f"the peer sent alert {alert_name(description)}", None)
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
            fail(f"unexpected handshake message {kind}", Alert.UNEXPECTED_MESSAGE)
        if length is None:
            return
        if kind == KEY_UPDATE and length != 1:
            fail("malformed KeyUpdate", Alert.DECODE_ERROR)
        if length > 1 << 16:
            fail("handshake message of more than 65536 bytes", Alert.DECODE_ERROR)

    def _message(self, message: bytes, *, last: bool) -> None:
        if self.suite.version == TLS12:
            self.renegotiation_refused = True
            self._carried_nothing()
        elif message[0] == KEY_UPDATE:
            self._key_update(message[4], last=last)
        # A NewSessionTicket needs nothing: handfast's client role does not resume.

    def _key_update(self, request: int, *, last: bool) -> None:
        if request > 1:
            fail("KeyUpdate asks for neither 0 nor 1", Alert.ILLEGAL_PARAMETER)
        if not last:
            fail("KeyUpdate does not end its record", Alert.UNEXPECTED_MESSAGE)
        self._key_updates += 1
        if self._key_updates > MAX_KEY_UPDATES:
            fail(f"more than {MAX_KEY_UPDATES} KeyUpdates", Alert.UNEXPECTED_MESSAGE)
        self._rekey()
        if request:
            self.update_requested = True
