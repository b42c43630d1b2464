"""Close a connection so that its last bytes arrive.

Closing a socket that has unread input makes the kernel send RST, and the RST overtakes what was
sent before it: the peer would never see the alert. So the write side is closed first, input is
thrown away until the peer closes too, and a deadline bounds it.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from handfast.transport.deadlines import Deadlines
from handfast.transport.loop import Loop
from handfast.transport.plain import finish

LINGER_SECONDS: Final = 1.0
_DISCARD_LIMIT: Final = 1 << 20
_NO_MORE: Final = {errno.EIO, errno.EINVAL, errno.EBADMSG, errno.EMSGSIZE, errno.EKEYEXPIRED}
"""What the kernel's TLS says of records that it does not give: the peer has not closed yet."""


def take_leave(loop: Loop, deadlines: Deadlines, sock: socket.socket, last: bytes) -> None:
    """Send the last bytes, if there are any, and close the socket so that they arrive."""
    try:
        if last:
            sock.send(last)
    except OSError:
        sock.close()  # it is gone or takes no more: there is nobody to tell
        return
    Lingering(loop, deadlines, sock)


class Lingering:
    """A socket on its way to be closed. It owns the socket."""

    __slots__ = ("_deadlines", "_discarded", "_loop", "_sock", "bucket")

    def __init__(self, loop: Loop, deadlines: Deadlines, sock: socket.socket) -> None:
        self.bucket = 0
        self._loop = loop
        self._deadlines = deadlines
        self._sock = sock
        self._discarded = 0
        finish(sock)
        loop.add_reader(sock.fileno(), self._discard)
        deadlines.set(self, loop.time() + LINGER_SECONDS)

    def _discard(self) -> None:
        try:
            while self._discarded <= _DISCARD_LIMIT and (data := self._sock.recv(65536)):
                self._discarded += len(data)
        except (BlockingIOError, InterruptedError):
            # With the kernel's TLS there may be a part of a record, for which to wait like this.
            self._loop.watch_edges(self._sock.fileno())
            return
        except OSError as error:
            if error.errno in _NO_MORE:
                self._loop.remove_reader(self._sock.fileno())  # the deadline closes it
                return
        self._close()

    def _close(self) -> None:
        self._deadlines.drop(self)
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def expired(self, now: float) -> None:  # noqa: ARG002 - the protocol of Deadlines
        """Close: the peer had its time."""
        self._close()
