"""Take a live session out of its two directions, as a value."""

from __future__ import annotations

from handfast.errors import HandfastBug
from handfast.tls.reader import RecordReader
from handfast.tls.session import Peer, Session
from handfast.tls.writer import RecordWriter


def export(reader: RecordReader, writer: RecordWriter, peer: Peer, unsent: bytes = b"") -> Session:
    """Take the session out of its two directions, which can do nothing from then on.

    `unsent` is what was sealed and not written to the socket yet. Raises Consumed when the
    session was taken before. A KeyUpdate that is still owed must be sealed into `unsent` first.
    """
    if reader.update_requested or reader.renegotiation_refused:
        raise HandfastBug("the peer is owed an answer; seal it before the export")
    return Session(
        role=reader.role,
        suite_code=reader.suite.code,
        read=reader.export(),
        write=writer.export(),
        peer=peer,
        unread=reader.unread,
        unsent=unsent,
        partial=reader.partial,
        key_updates=reader.key_updates,
        bytes_in=reader.bytes,
        bytes_out=writer.bytes,
    )
