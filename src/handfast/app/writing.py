"""Our direction of a session: the same, whoever seals the records. Nothing here waits."""

from __future__ import annotations

import contextlib
import select
import socket
from abc import ABC, abstractmethod
from typing import ClassVar, Final

from handfast.tls.record import MAX_PLAINTEXT
from handfast.tls.session import Session
from handfast.tls.writer import RecordWriter, room_for
from handfast.transport.kernel import KernelWriter

_WRITE_SIZE: Final = 4 * MAX_PLAINTEXT


class Writing(ABC):
    """One direction to a client. What is told to it goes out in order, or not at all."""

    sealer: RecordWriter | KernelWriter
    in_kernel: ClassVar = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @property
    def closed(self) -> bool:
        """Whether close_notify, or a fatal alert, was said: nothing may follow."""
        return self.sealer.closed

    @abstractmethod
    def flush(self) -> bool:
        """Hand to the kernel what was sealed; True when nothing is left, and more can be said."""

    @abstractmethod
    def write(self, data: memoryview) -> int:
        """Take some of the data; give how much. 0 is to be tried again when there is room.

        Raises OSError, and PeerError when the key is used up and cannot be changed.
        """

    @abstractmethod
    def alert(self, alert: int) -> None:
        """Say an alert, after `flush` was True."""

    @abstractmethod
    def key_update(self) -> None:
        """Change our key, after `flush` was True. Raises PeerError where the kernel cannot."""

    def close(self) -> None:
        """Overwrite the secrets; the socket stays."""
        self.sealer.forget()


class UserWriting(Writing):
    """Sealed here. What the socket does not take is kept as it is: it is never sealed again."""

    sealer: RecordWriter

    def __init__(self, sock: socket.socket, session: Session) -> None:
        super().__init__(sock)
        self.sealer = RecordWriter(session)
        self._pending = memoryview(session.unsent)

    def flush(self) -> bool:
        """Write what is pending."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while self._pending:
                self._pending = self._pending[self._sock.send(self._pending) :]
        return not self._pending

    def write(self, data: memoryview) -> int:
        """Seal up to four records, and write them."""
        if not self.flush():
            return 0
        piece = data[:_WRITE_SIZE]
        length = len(piece)
        buffer = bytearray(length + 1)  # sealing needs a byte to spare
        buffer[:length] = piece
        out = memoryview(bytearray(room_for(length)))
        self._pending = out[: self.sealer.seal(memoryview(buffer), length, out)]
        self.flush()
        return length

    def alert(self, alert: int) -> None:
        """Seal it, and write it."""
        self._pending = memoryview(self.sealer.alert(alert))
        self.flush()

    def key_update(self) -> None:
        """Seal it, and write it."""
        self._pending = memoryview(self.sealer.key_update(request=False))
        self.flush()


class KernelWriting(Writing):
    """Sealed by the kernel.

    Before a record that is no data the socket has to be writable: the kernel may hold the rest of
    one for which there was no room, and FIN would leave that behind (see `relay.splicing`).
    """

    sealer: KernelWriter
    in_kernel = True

    def __init__(self, sock: socket.socket, session: Session) -> None:
        super().__init__(sock)
        self.sealer = KernelWriter(sock, session.suite, session.write, session.bytes_out)

    def flush(self) -> bool:
        """Tell whether there is room: what was written is the kernel's."""
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        return bool(poll.poll(0))

    def write(self, data: memoryview) -> int:
        """Write plaintext."""
        try:
            self.sealer.keep_limits()
            sent = self._sock.send(data[:_WRITE_SIZE])
        except (BlockingIOError, InterruptedError):
            return 0
        self.sealer.account(sent)
        return sent

    def alert(self, alert: int) -> None:
        """Have the kernel seal it."""
        self.sealer.alert(alert)

    def key_update(self) -> None:
        """Have the kernel seal it, and change keys."""
        self.sealer.key_update(request=False)


def writing(sock: socket.socket, session: Session) -> Writing:
    """Go on with a session's direction where it is."""
    home = KernelWriting if session.write.in_kernel else UserWriting
    return home(sock, session)
