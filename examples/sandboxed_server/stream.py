"""How the server speaks with a client: under a session's keys, or in the clear. Without I/O."""

from __future__ import annotations

from handfast.tls.alerts import Alert
from handfast.tls.reader import RecordReader
from handfast.tls.session import Session
from handfast.tls.writer import RecordWriter, room_for


class Sealed:
    """A TLS session's records."""

    def __init__(self, session: Session) -> None:
        self._reader = RecordReader(session)
        self._writer = RecordWriter(session)
        self.unsent = session.unsent
        session.wipe()  # they have copies

    @property
    def closed(self) -> bool:
        """Tell whether the client has said that it is done."""
        return self._reader.closed

    def open(self, ciphertext: bytes) -> bytes:
        """Open what came, behind what the acceptor had read too much; raises PeerError."""
        buffer = memoryview(bytearray(len(self._reader.unread) + len(ciphertext)))
        out = memoryview(bytearray(len(buffer)))
        buffer[self._reader.restore(buffer) :] = ciphertext
        return bytes(out[: self._reader.open(buffer, len(buffer), out)])

    def seal(self, text: bytes) -> bytes:
        """Seal what is to be sent, behind what the client is owed."""
        buffer = memoryview(bytearray(text + b"\0"))  # one byte to spare
        out = memoryview(bytearray(room_for(len(text))))
        owed = self._owed()
        return owed + bytes(out[: self._writer.seal(buffer, len(text), out)])

    def _owed(self) -> bytes:
        owed = b""
        if self._reader.update_requested:
            self._reader.update_requested = False
            owed += self._writer.key_update(request=False)
        if self._reader.renegotiation_refused:
            self._reader.renegotiation_refused = False
            owed += self._writer.alert(Alert.NO_RENEGOTIATION)
        return owed

    def end(self, alert: int = Alert.CLOSE_NOTIFY) -> bytes:
        """Give what is to be sent last."""
        return self._writer.alert(alert)


class Bare:
    """No protection at all."""

    closed = False
    unsent = b""

    def open(self, text: bytes) -> bytes:
        """Give what came, as it is."""
        return text

    def seal(self, text: bytes) -> bytes:
        """Give what is to be sent, as it is."""
        return text

    def end(self, alert: int = Alert.CLOSE_NOTIFY) -> bytes:
        """Give nothing: the end of the stream is the end."""
        return b""
