"""A client's connection, for a program that waits."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from typing import Final, Self

from handfast.app.errors import SessionError
from handfast.app.link import Link
from handfast.app.peer import Peer
from handfast.handover.application import Offer

LINGER_SECONDS: Final = 1.0
"""How long closing waits for the client's end. Without, what it still sends would make the kernel
send RST, which can overtake our last bytes."""

Buffer = bytes | bytearray | memoryview


class Connection:
    """A client's connection: read, write, close. What it says is as of a socket, without TLS.

    One thread may read while another writes. Every call that waits raises TimeoutError after
    `timeout` seconds; None, as it is in the beginning, is for ever.
    """

    def __init__(self, sock: socket.socket, offer: Offer) -> None:
        self.timeout: float | None = None
        self._link = Link(sock, offer)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        peer = self._link.peer
        return f"Connection({peer.address} port {peer.port}, {self._link.home})"

    @property
    def peer(self) -> Peer:
        """Who the client is."""
        return self._link.peer

    @property
    def home(self) -> str:
        """Where the session is: "kernel", "user", or "kernel-tx" with our direction in the kernel.

        It makes no difference but in speed.
        """
        return self._link.home

    def fileno(self) -> int:
        """Give the socket's descriptor, for who wants to know; not for reading or writing."""
        return self._link.sock.fileno()

    def read(self, limit: int = 1 << 16) -> bytes:
        """Wait for data, and give up to `limit` bytes of it; b"" when the client has said its end.

        Raises SessionError when the client broke the protocol or left without saying so, in which
        case what was read may be a part of what it meant; and OSError when the connection broke.
        """
        until = self._until()
        while True:
            with self._lock:
                data = self._link.read(limit)
                descriptor = self._link.waits_on() if data is None else -1
            if data is not None:
                return data
            _wait(descriptor, select.POLLIN, until)

    def write(self, data: Buffer) -> None:
        """Write all of the data, as far as the kernel; raises SessionError and OSError."""
        until = self._until()
        left = memoryview(data).cast("B")
        while True:
            with self._lock:
                left = left[self._link.write(left) :]
                if not left and self._link.flush():
                    return
            _wait(self.fileno(), select.POLLOUT, until)

    def finish(self) -> None:
        """Say that nothing more comes from here, and go on reading."""
        until = self._until()
        while True:
            with self._lock:
                if self._link.finish():
                    return
            _wait(self.fileno(), select.POLLOUT, until)

    def close(self) -> None:
        """Say the end, if it was not said; wait a second at most for the client's, and close.

        A client that broke the protocol gets its alert in the same way.
        """
        if self._link.closed:
            return
        until = time.monotonic() + LINGER_SECONDS
        self._link.leaving = True
        try:
            with contextlib.suppress(SessionError):
                while not self._link.finish():
                    _wait(self.fileno(), select.POLLOUT, until)
            while not self._link.discard():
                _wait(self._link.waits_on(), select.POLLIN, until)
        except OSError:
            pass  # broken, or too late: there is nobody to tell
        finally:
            self._link.close()

    def abort(self) -> None:
        """Close at once, with RST: the client sees an error, and not an end."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; after an exception, so that the client does not take it for the end."""
        if kind is None or issubclass(kind, SessionError):
            self.close()
        else:
            self.abort()

    def _until(self) -> float | None:
        return None if self.timeout is None else time.monotonic() + self.timeout


def _wait(descriptor: int, events: int, until: float | None) -> None:
    """Wait for a descriptor; raise TimeoutError when the time is over."""
    left = None if until is None else max(0.0, until - time.monotonic())
    poll = select.poll()
    poll.register(descriptor, events)
    if not poll.poll(None if left is None else left * 1000):
        raise TimeoutError("the client took too long")
