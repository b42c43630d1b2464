"""Take a live session out of its two directions, as a value."""

from __future__ import annotations

from typing import Protocol

from handfast.tls.content import Content
from handfast.tls.reader import RecordReader
from handfast.tls.session import Direction, Peer, Session


class Sealer(Protocol):
    """Our direction of a session, wherever its records are sealed. `bytes` counts the data."""

    bytes: int

    def export(self) -> Direction:
        """Give the direction away; it can do nothing from then on."""


def export(reader: Content, writer: Sealer, peer: Peer, unsent: bytes = b"") -> Session:
    """Take the session out of its two directions, which can do nothing from then on.

    `unsent` is what was sealed and not written to the socket yet. Raises Consumed when the
    session was taken before.
    """
    return Session(
        role=reader.role,
        suite_code=reader.suite.code,
        read=reader.export(),
        write=writer.export(),
        peer=peer,
        unread=reader.unread if isinstance(reader, RecordReader) else b"",
        unsent=unsent,
        received=reader.received,
        bytes_out=writer.bytes,
    )
