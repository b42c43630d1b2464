"""What a socket is told before it is closed."""

from __future__ import annotations

import socket
import struct
from typing import Final

_LINGER_NONE: Final = struct.pack("ii", 1, 0)


def reset(sock: socket.socket) -> None:
    """Close a socket with RST instead of FIN, so that the peer sees an error and not an end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    except OSError:
        pass  # a Unix socket, or one that the peer has reset: closing says all there is to say
    sock.close()


def finish(sock: socket.socket) -> None:
    """Send FIN; a peer that is gone needs none."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # ENOTCONN: reset by the peer; its read side reports that
