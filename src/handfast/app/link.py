"""A session and its socket, in one piece, for whoever waits in whatever way.

Nothing here waits: what cannot be done now says so, and the callers (`connection`, `asynchronous`)
know how to wait. Every byte of the client's is hostile. What breaks the protocol is answered with
the alert that is due and ends the session; a FIN without close_notify is truncation.
"""

from __future__ import annotations

import contextlib
import socket

from handfast.app.errors import SessionError
from handfast.app.peer import Peer, peer_of
from handfast.app.reading import reading
from handfast.app.writing import writing
from handfast.errors import HandfastError, PeerError
from handfast.handover.application import Offer
from handfast.tls.alerts import Alert
from handfast.transport.plain import finish, reset


class Link:
    """One client's connection. It owns the socket, which does not block.

    `leaving` is set by who waits for the end: nobody else reads from then on.
    """

    def __init__(self, sock: socket.socket, offer: Offer) -> None:
        self.sock = sock
        self.peer: Peer = peer_of(offer)
        self._reading = reading(sock, offer.session)
        self._writing = writing(sock, offer.session)
        offer.session.wipe()
        self._ready = memoryview(offer.data)
        self._error: SessionError | None = None
        self.finished = False
        self.leaving = False
        self.closed = False

    @property
    def home(self) -> str:
        """Where the records are sealed and opened, as in handfast's log."""
        if not self._writing.in_kernel:
            return "user"
        return "kernel" if self._reading.in_kernel else "kernel-tx"

    def waits_on(self) -> int:
        """Give the descriptor that tells when `read` is worth another try."""
        return self._reading.waits_on()

    def read(self, limit: int) -> bytes | None:
        """Give up to `limit` bytes; b"" at the end, None when nothing has come.

        Raises SessionError and OSError.
        """
        self._check()
        if self.leaving:
            raise OSError(9, "the connection is being closed")
        if not self._ready:
            try:
                data = self._reading.read()
            except PeerError as error:
                raise self._fail(error) from None
            except SessionError as error:
                self._error = error
                raise
            self._answer()
            if data is None:
                return None
            self._ready = memoryview(data)
        piece, self._ready = self._ready[:limit], self._ready[limit:]
        return bytes(piece)

    def write(self, data: memoryview) -> int:
        """Take some of the data; give how much. 0 is to be tried again when there is room.

        Raises SessionError, and OSError (BrokenPipeError after `finish`).
        """
        self._check()
        if self._writing.closed:
            raise BrokenPipeError("this side of the connection was closed")
        if not self._answer():
            return 0
        try:
            return self._writing.write(data)
        except PeerError as error:
            raise self._fail(error) from None

    def flush(self) -> bool:
        """Hand over what was taken; True when the kernel has it all."""
        self._check()
        return self._writing.flush() and self._answer()

    def finish(self) -> bool:
        """Say that nothing more comes from here (close_notify, FIN); False while there is no room.

        The client may go on.
        """
        self._check()
        ours = self._writing
        if not ours.flush():
            return False
        if not ours.closed:
            try:
                ours.alert(Alert.CLOSE_NOTIFY)
            except BlockingIOError:
                return False
        if not ours.flush():
            return False
        if not self.finished:
            self.finished = True
            finish(self.sock)
        return True

    def discard(self) -> bool:
        """Throw away what has come; True when nothing more will."""
        read = self._reading.read if self._error is None else self._receive
        try:
            while data := read():
                del data
        except (OSError, HandfastError):
            return True
        return data is not None

    def _receive(self) -> bytes | None:
        """Read what nobody can open any more."""
        try:
            return self.sock.recv(1 << 16)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Close the socket, whatever was said before. RST goes out where the end was not said."""
        if self.closed:
            return
        self.closed = True
        self._reading.close()
        self._writing.close()
        if self.finished or self._error is not None:
            self.sock.close()
        else:
            reset(self.sock)

    def _answer(self) -> bool:
        """Send what the client is owed, when nothing waits to be written before it."""
        contents, ours = self._reading.contents, self._writing
        if not (contents.update_requested or contents.renegotiation_refused):
            return True
        try:
            if ours.closed:
                return True
            if not ours.flush():
                return False
            if contents.update_requested:
                ours.key_update()
                contents.update_requested = False
            if contents.renegotiation_refused and ours.flush():
                ours.alert(Alert.NO_RENEGOTIATION)
                contents.renegotiation_refused = False
        except (BlockingIOError, InterruptedError):
            return False
        except PeerError as error:
            raise self._fail(error) from None
        return ours.flush()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self.closed:
            raise OSError(9, "the connection is closed")

    def _fail(self, error: PeerError) -> SessionError:
        """Come to the end, with the alert that is due; give what to raise."""
        ours = self._writing
        with contextlib.suppress(OSError, HandfastError):  # then there is nobody to tell
            if error.alert is not None and not ours.closed and ours.flush():
                ours.alert(error.alert)
        finish(self.sock)
        self._error = SessionError(error.reason)
        return self._error
