"""Hand-over messages as bytes."""

from __future__ import annotations

from handfast.handover.message import Handover, encode_into


def encode(handover: Handover) -> bytes:
    """The message of one that has room for everything."""
    buffer = bytearray()
    assert encode_into(buffer, handover) is None
    return bytes(buffer)
