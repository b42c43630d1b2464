"""A target that the test itself plays: it accepts, reads and writes when the test says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from harness.homes import TIMEOUT


@contextmanager
def silent_target() -> Iterator[socket.socket]:
    """Listen without accepting."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(TIMEOUT)
        yield listening


def target_of(listening: socket.socket) -> str:
    """Give a listening socket as the configuration names it."""
    return f"tcp://127.0.0.1:{listening.getsockname()[1]}"


def accepted(listening: socket.socket) -> socket.socket:
    """Take the connection of the relay."""
    connection, _ = listening.accept()
    connection.settimeout(TIMEOUT)
    return connection


def receive_from(connection: socket.socket, count: int) -> bytes:
    """Read exactly so many bytes, fewer at the end of the stream."""
    data = bytearray()
    while len(data) < count and (piece := connection.recv(1 << 16)):
        data += piece
    return bytes(data)
