"""Read a PROXY header.

Version 1 is read by its exact grammar; of version 2 the addresses, and the checksum where one is
sent. LOCAL, UNKNOWN, Unix sockets, datagrams and unspecified families leave the addresses to be
those of the connection itself, as the specification allows.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import Final

import google_crc32c
import msgspec

from handfast.errors import PeerError
from handfast.transport.proxy_protocol.wire import (
    CRC32C,
    HEAD,
    LOCAL,
    MAPPED,
    PROXY,
    SIGNATURE,
    TCP4,
    TCP6,
    Endpoint,
)

MAX_V1: Final = 107
"""Bytes of a version 1 line at most, with its CRLF."""
MAX_V2: Final = 16 * 1024
"""Bytes of a version 2 header that is accepted. 65551 are possible; real ones have hundreds."""

_V1: Final = b"PROXY "
# What stands before the TLVs in each of the families that have addresses, in bytes.
_ADDRESSES: Final = {TCP4: 12, 0x12: 12, TCP6: 36, 0x22: 36, 0x31: 216, 0x32: 216}
_PORT: Final = rb"(0|[1-9][0-9]{0,4})"
_V1_LINE: Final = re.compile(
    rb"PROXY (?:TCP4 ([0-9.]+) ([0-9.]+)|TCP6 ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+)) "
    + _PORT + b" " + _PORT
)  # fmt: skip
_V1_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: .*)?", re.DOTALL)


class Header(msgspec.Struct, frozen=True):
    """A header that was read: its addresses, or None for those of the connection itself.

    `length` is how many bytes it took; what is behind them is the client's.
    """

    source: Endpoint | None
    destination: Endpoint | None
    length: int


def parse(data: bytes) -> Header | None:
    """Read the header at the beginning of `data`; None when more bytes are needed.

    Raise PeerError, without an alert, for what is no header of the protocol.
    """
    if data.startswith(SIGNATURE):
        return _parse_v2(data)
    if data.startswith(_V1):
        return _parse_v1(data)
    if SIGNATURE.startswith(data) or _V1.startswith(data):
        return None
    raise PeerError("no PROXY header, which this network has to send")


def _parse_v1(data: bytes) -> Header | None:
    line, end, _ = data[:MAX_V1].partition(b"\r\n")
    if not end:
        if len(data) >= MAX_V1 or b"\n" in line:
            raise PeerError(f"PROXY line without CRLF in its first {MAX_V1} bytes")
        return None
    length = len(line) + 2
    if _V1_UNKNOWN.fullmatch(line):
        return Header(None, None, length)
    match = _V1_LINE.fullmatch(line)
    if match is None:
        raise PeerError("malformed PROXY line")
    source4, destination4, source6, destination6, *ports = match.groups()
    ends = (source4, destination4) if source4 else (source6, destination6)
    family = socket.AF_INET if source4 else socket.AF_INET6
    source, destination = (
        _text_endpoint(family, host.decode(), int(port))
        for host, port in zip(ends, ports, strict=True)
    )
    return Header(source, destination, length)


def _text_endpoint(family: socket.AddressFamily, host: str, port: int) -> Endpoint:
    try:
        packed = socket.inet_pton(family, host)
    except OSError:
        raise PeerError("PROXY line with a malformed address") from None
    if port > 0xFFFF:
        raise PeerError(f"PROXY line with port {port}, which is over 65535")
    return _host(packed), port


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < HEAD.size:
        return None
    _, command, family, length = HEAD.unpack_from(data)
    if command not in (LOCAL, PROXY):
        raise PeerError(f"PROXY header of unknown version and command 0x{command:02x}")
    end = HEAD.size + length
    if end > MAX_V2:
        raise PeerError(f"PROXY header of {end} bytes exceeds {MAX_V2}")
    if len(data) < end:
        return None
    if command == LOCAL:
        return Header(None, None, end)
    return _parse_proxied(data[:end], family)


def _parse_proxied(header: bytes, family: int) -> Header:
    if family >> 4 > 3 or family & 15 > 2:
        raise PeerError(f"PROXY header of unknown family and protocol 0x{family:02x}")
    size = _ADDRESSES.get(family)
    if size is None:  # unspecified: what follows has no known form
        return Header(None, None, len(header))
    tlvs = HEAD.size + size
    if len(header) < tlvs:
        raise PeerError("PROXY header is too short for its addresses")
    _check_tlvs(header, tlvs)
    if family not in (TCP4, TCP6):
        return Header(None, None, len(header))
    width = (size - 4) // 2
    source, destination, source_port, destination_port = struct.unpack_from(
        f"!{width}s{width}sHH", header, HEAD.size
    )
    return Header((_host(source), source_port), (_host(destination), destination_port), len(header))


def _check_tlvs(header: bytes, start: int) -> None:
    """Go through the TLVs to the exact end of the header, and verify the checksum."""
    while start < len(header):
        value = start + 3
        end = value + int.from_bytes(header[start + 1 : value], "big")
        if value > len(header) or end > len(header):
            raise PeerError("PROXY header with a truncated TLV")
        if header[start] == CRC32C:
            without = header[:value] + bytes(end - value) + header[end:]
            if header[value:end] != google_crc32c.value(without).to_bytes(4, "big"):
                raise PeerError("PROXY header with a wrong checksum")
        start = end


def _host(packed: bytes) -> str:
    if packed.startswith(MAPPED) and len(packed) == 16:
        packed = packed[12:]
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
