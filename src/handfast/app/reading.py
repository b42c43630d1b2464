"""The client's direction of a session: the same, whoever opens the records.

Both homes give data in the same way and come to the same ends. Neither waits.
"""

from __future__ import annotations

import select
import socket
from abc import ABC, abstractmethod
from typing import ClassVar, Final

from handfast.app.errors import SessionError
from handfast.errors import PeerError
from handfast.tls.alerts import Alert
from handfast.tls.content import Content
from handfast.tls.reader import RecordReader
from handfast.tls.record import MAX_PLAINTEXT
from handfast.tls.session import Session
from handfast.transport.kernel import NO_DATA, KernelReader, problem

_READ_SIZE: Final = 4 << 14
_TRUNCATED: Final = "the client closed without close_notify"


class Reading(ABC):
    """One client's direction. `contents` knows how far it has come."""

    contents: Content
    in_kernel: ClassVar = False

    @abstractmethod
    def read(self) -> bytes | None:
        """Give data; b"" at the end, None when nothing has come.

        Raises PeerError when the client breaks the protocol, and OSError.
        """

    def waits_on(self) -> int:
        """Give a descriptor that is readable when `read` is worth a try after it gave None."""
        return self._sock.fileno()

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def close(self) -> None:
        """Overwrite the secrets; the socket stays."""
        self.contents.forget()


class UserReading(Reading):
    """Opened here."""

    contents: RecordReader

    def __init__(self, sock: socket.socket, session: Session) -> None:
        super().__init__(sock)
        self.contents = RecordReader(session)
        self._fresh = bool(session.unread)  # it may hold whole records

    def read(self) -> bytes | None:
        """Read and open until there is data."""
        reader = self.contents
        data = None if not reader.closed else b""
        while data is None:
            buffer = memoryview(bytearray(len(reader.unread) + _READ_SIZE))
            length = reader.restore(buffer)
            if not self._fresh:
                count = self._receive(buffer, length)
                if count is None:
                    return None
                length += count
            self._fresh = False
            out = memoryview(bytearray(length))
            count = reader.open(buffer, length, out)
            data = bytes(out[:count]) if count or reader.closed else None
        return data

    def _receive(self, buffer: memoryview, kept: int) -> int | None:
        try:
            count = self._sock.recv_into(buffer[kept:])
        except (BlockingIOError, InterruptedError):
            self.contents.unread = bytes(buffer[:kept])
            return None
        if not count:
            raise SessionError(_TRUNCATED)
        return count


class KernelReading(Reading):
    """Opened by the kernel."""

    contents: KernelReader
    in_kernel = True

    def __init__(self, sock: socket.socket, session: Session) -> None:
        super().__init__(sock)
        self.contents = KernelReader(
            sock, session.suite, session.read, session.role, session.received
        )
        self._edges: select.epoll | None = None

    def waits_on(self) -> int:
        """Give a descriptor that tells of changes only.

        Old kernels (6.1, for one) call a socket readable that has a part of a record, which nobody
        can read yet: waiting for that would be a busy loop.
        """
        if self._edges is None:
            self._edges = select.epoll()
            self._edges.register(self._sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        return self._edges.fileno()

    def read(self) -> bytes | None:
        """Read data, and take what is not data on the way."""
        inlet = self.contents
        data: bytes | None = b"" if inlet.closed else None
        if self._edges is not None:
            self._edges.poll(0)  # what changes from here on counts
        while data is None:
            try:
                data = self._sock.recv(_READ_SIZE)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as error:
                if error.errno not in NO_DATA:
                    raise self._blame(error) from None
                data = self._record(empty=False)
            else:
                if data:
                    inlet.data(len(data))
                else:
                    data = self._record(empty=True)
        return data

    def _record(self, *, empty: bool) -> bytes | None:
        """Take one record of any kind; give its data, b"" at the end. `empty`: recv gave nothing.

        That is a record without data, or FIN.
        """
        inlet = self.contents
        room = memoryview(bytearray(MAX_PLAINTEXT))
        try:
            kind, length = inlet.receive(room)
        except (BlockingIOError, InterruptedError):
            if not empty:
                raise PeerError(
                    "unprotected or unknown record", alert=Alert.UNEXPECTED_MESSAGE
                ) from None
            inlet.data(0)
            return None
        except OSError as error:
            raise self._blame(error) from None
        if not kind:
            raise SessionError(_TRUNCATED)
        length = inlet.take(kind, room, length)
        return bytes(room[:length]) if length or inlet.closed else None

    def _blame(self, error: OSError) -> Exception:
        # The kernel keeps it with the socket, and would refuse our alert because of it.
        self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return problem(error) or error

    def close(self) -> None:
        """Overwrite the secrets, and give the descriptor back."""
        super().close()
        if self._edges is not None:
            self._edges.close()
            self._edges = None


def reading(sock: socket.socket, session: Session) -> Reading:
    """Go on with a session's direction where it is."""
    home = KernelReading if session.read.in_kernel else UserReading
    return home(sock, session)
