"""What a handshake engine is, and what becomes of a handshake.

An engine is sans-I/O: `feed` takes bytes that were read and gives bytes to write, until `done`;
then `session` gives the session, once. How records come in before there are keys is checked here,
so that every engine refuses the same things with the same alerts (`split_records`).
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Protocol

from handfast.errors import PeerError
from handfast.tls.alerts import Alert
from handfast.tls.hello import first_message
from handfast.tls.record import HEADER, MAX_CIPHERTEXT_12, MAX_CIPHERTEXT_13, MAX_PLAINTEXT
from handfast.tls.session import Session

MAX_HANDSHAKE: Final = 1 << 17
"""Bytes that a peer may send before the handshake is done: 128 KB, room for long chains."""

_HANDSHAKE: Final = 22
_KNOWN_TYPES: Final = frozenset((20, 21, 22, 23))
_HTTP: Final = (b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"TRAC", b"CONN",
                b"PRI ")  # fmt: skip


class Outcome(Enum):
    """How a handshake that failed is counted."""

    DENIED = "denied"
    """The peer was refused, for what it offered, showed or sent."""
    FAILED = "failed"
    """It did not come to that: silence, a reset, the peer gave up, or we have a fault."""


class HandshakeError(PeerError):
    """A handshake that came to its end without a session.

    `reason` of PeerError is for people; `token` is the same as one stable word. `output` is to be
    written before closing: it holds the alert, if there is one to send. `alert` is the alert that
    was sent or, when `received`, the one that the peer sent. `certificates` (DER, leaf first) is
    what is known of a refused client certificate; `about_certificate` tells that it was refused
    for its certificate or for having none.
    """

    def __init__(
        self,
        reason: str,
        *,
        token: str,
        alert: int | None = None,
        output: bytes = b"",
        outcome: Outcome = Outcome.DENIED,
        received: bool = False,
        about_certificate: bool = False,
        certificates: tuple[bytes, ...] = (),
    ) -> None:
        super().__init__(reason, alert=alert)
        self.token = token
        self.output = output
        self.outcome = outcome
        self.received = received
        self.about_certificate = about_certificate
        self.certificates = certificates


class Handshake(Protocol):
    """One handshake in progress."""

    done: bool
    hello: bytes
    """What the peer sent first, as far as it came: for `hello.first_message`, when it failed."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes that were read; give bytes to write. Raises HandshakeError at its end."""

    def session(self) -> Session:
        """Give the session of a handshake that is done; only once."""


class Engine(Protocol):
    """Makes handshakes that share certificates, policy and resumption keys."""

    def start(self, address: str, port: int) -> Handshake:
        """Begin a handshake with the peer at this address."""


def check_start(data: bytes | bytearray) -> None:
    """Refuse a stream that does not start as TLS does, by its first bytes (up to five)."""
    if data[0] == _HANDSHAKE and (len(data) < 2 or data[1] == 3):
        return
    if any(method.startswith(bytes(data[:4])) for method in _HTTP):
        if len(data) < 4:
            return  # the next bytes tell what it is
        raise HandshakeError(
            "plain HTTP on the TLS port", token="http_request", alert=Alert.UNEXPECTED_MESSAGE
        )
    if data[0] & 0x80 and (len(data) < 3 or data[2] == 1):
        if len(data) < 3:
            return  # the third byte tells
        raise HandshakeError(
            "SSLv2 ClientHello", token="unsupported_protocol", alert=Alert.PROTOCOL_VERSION,
        )  # fmt: skip
    raise HandshakeError(
        "the first bytes are not TLS", token="not_tls", alert=Alert.UNEXPECTED_MESSAGE
    )


def record_end(data: bytes | bytearray, position: int) -> int:
    """Give the end of the record at `position`, or 0 when its header is not all there.

    Refuses by the header alone what no handshake can hold: unknown types, empty records, and
    records beyond the limit of their kind (plaintext for handshake records, RFC 8446, section 5.1;
    sealed ones, which all records but those may be, have more).
    """
    if len(data) - position < HEADER:
        return 0
    kind, size = data[position], data[position + 3] << 8 | data[position + 4]
    if kind not in _KNOWN_TYPES or data[position + 1] != 3:
        raise HandshakeError(
            f"record of unknown type {kind}", token="unknown_record",
            alert=Alert.UNEXPECTED_MESSAGE,
        )  # fmt: skip
    limit = MAX_CIPHERTEXT_13 if kind == 23 else MAX_CIPHERTEXT_12
    if position == 0 and kind == _HANDSHAKE:
        limit = max(MAX_PLAINTEXT, MAX_CIPHERTEXT_13)
    if size > limit:
        raise HandshakeError(
            f"record of {size} bytes exceeds {limit}", token="record_overflow",
            alert=Alert.RECORD_OVERFLOW,
        )  # fmt: skip
    if not size:
        raise HandshakeError(
            "empty record in the handshake", token="empty_record", alert=Alert.UNEXPECTED_MESSAGE
        )
    return position + HEADER + size


class FirstMessage:
    """Finds the end of the first message of a stream that grows: a hello, in however many records.

    Each byte is looked at once, so that a peer that sends one at a time costs no more than others.
    """

    __slots__ = ("_client", "_have", "_need", "end", "stream")

    def __init__(self, stream: bytearray, *, client: bool) -> None:
        self.stream = stream
        self.end = 0
        """How many bytes of whole records have been found."""
        self._client = client
        self._have = 0  # bytes of the message in them
        self._need = 4

    def whole(self) -> bool:
        """Tell whether the message is there. Raises HandshakeError for what cannot become one.

        A stream that begins with another record (an alert) counts as whole with that record.
        """
        stream = self.stream
        if self._client and not self.end:
            check_start(stream)
        while self._have < self._need:
            start = self.end
            end = record_end(stream, start)
            if not end or end > len(stream):
                return False
            if end > MAX_HANDSHAKE:  # however little of the message is in each record
                raise _too_long(end)
            self.end = end
            if stream[start] != _HANDSHAKE:
                break
            self._have += end - start - HEADER
            if self._need == 4 and self._have >= 4:
                # Nearly always the message's own header is in the first record.
                head = first_message(bytes(stream[:end])) if start else stream[HEADER : HEADER + 4]
                self._need += int.from_bytes(head[1:4], "big")
            if self._need > MAX_HANDSHAKE:
                raise _too_long(self._need)
        return True


def _too_long(size: int) -> HandshakeError:
    return HandshakeError(
        f"first message of {size} bytes or more", token="handshake_too_long",
        alert=Alert.DECODE_ERROR,
    )  # fmt: skip
