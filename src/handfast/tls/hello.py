"""Reads hello messages: what a client offered and what a server chose.

Only to tell and to route, never to decide the handshake: that is the engine's. What can be read in
two ways (an extension twice, two names) is refused, so that no server behind us reads it otherwise.
Sources: RFC 8446, sections 4.1.2, 4.1.3, 4.2 and 4.2.7; RFC 6066, section 3 (server_name); RFC 7301
(ALPN).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from handfast.errors import PeerError
from handfast.tls.alerts import Alert

_SERVER_NAME: Final = 0
_SUPPORTED_GROUPS: Final = 10
_ALPN: Final = 16
_PRE_SHARED_KEY: Final = 41
_SUPPORTED_VERSIONS: Final = 43


class ClientHello(msgspec.Struct, frozen=True):
    """What a client offered. `sni` is as sent, not checked; the numbers are those on the wire."""

    versions: tuple[int, ...]
    suites: tuple[int, ...]
    sni: bytes = b""
    alpn: tuple[bytes, ...] = ()
    groups: tuple[int, ...] = ()


class ServerHello(msgspec.Struct, frozen=True):
    """What the server chose. `resumed` counts in TLS 1.3 only, where it shows in this message."""

    version: int
    suite: int
    resumed: bool


class _Cursor:
    """Takes length-prefixed pieces from bytes; PeerError decode_error when they run out."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self.data):
            raise PeerError("hello message ends too early", alert=Alert.DECODE_ERROR)
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> bytes:
        return self.take(self.number(width))

    @property
    def left(self) -> int:
        return len(self.data) - self.position


def _numbers(data: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data) - 1, 2))


def _extensions(cursor: _Cursor) -> Iterator[tuple[int, bytes]]:
    if not cursor.left:
        return
    inner = _Cursor(cursor.vector(2))
    seen = set()
    while inner.left:
        kind = inner.number(2)
        if kind in seen:
            raise PeerError(f"two extensions {kind} in a hello", alert=Alert.ILLEGAL_PARAMETER)
        seen.add(kind)
        yield kind, inner.vector(2)
    if cursor.left:
        raise PeerError("bytes behind the extensions of a hello", alert=Alert.DECODE_ERROR)


def _server_name(body: bytes) -> bytes:
    names = _Cursor(_Cursor(body).vector(2))
    found = []
    while names.left:
        kind = names.number(1)
        name = names.vector(2)
        if kind == 0:
            found.append(name)
    if len(found) > 1:
        raise PeerError("a hello asks for two host names", alert=Alert.ILLEGAL_PARAMETER)
    return found[0] if found else b""


def _protocols(body: bytes) -> tuple[bytes, ...]:
    names = _Cursor(_Cursor(body).vector(2))
    found = []
    while names.left:
        found.append(names.vector(1))
    return tuple(found)


def _message(kind: int, data: bytes) -> _Cursor:
    cursor = _Cursor(data)
    if cursor.number(1) != kind:
        raise PeerError("not the hello message expected", alert=Alert.UNEXPECTED_MESSAGE)
    return _Cursor(cursor.vector(3))


def parse_client_hello(data: bytes) -> ClientHello:
    """Read a ClientHello handshake message, its 4-byte header included; PeerError if malformed."""
    cursor = _message(1, data)
    versions: tuple[int, ...] = (cursor.number(2),)
    cursor.take(32)
    cursor.vector(1)
    suites = _numbers(cursor.vector(2))
    cursor.vector(1)
    sni = b""
    alpn: tuple[bytes, ...] = ()
    groups: tuple[int, ...] = ()
    for kind, body in _extensions(cursor):
        if kind == _SERVER_NAME:
            sni = _server_name(body)
        elif kind == _ALPN:
            alpn = _protocols(body)
        elif kind == _SUPPORTED_GROUPS:
            groups = _numbers(_Cursor(body).vector(2))
        elif kind == _SUPPORTED_VERSIONS:
            versions = _numbers(_Cursor(body).vector(1))
    return ClientHello(versions, suites, sni, alpn, groups)


def parse_server_hello(data: bytes) -> ServerHello:
    """Read a ServerHello handshake message, its 4-byte header included; PeerError if malformed."""
    cursor = _message(2, data)
    version = cursor.number(2)
    cursor.take(32)
    cursor.vector(1)
    suite = cursor.number(2)
    cursor.take(1)
    resumed = False
    for kind, body in _extensions(cursor):
        if kind == _SUPPORTED_VERSIONS:
            version = int.from_bytes(body, "big")
        elif kind == _PRE_SHARED_KEY:
            resumed = True
    return ServerHello(version, suite, resumed)


def first_message(records: bytes) -> bytes:
    """Join the first handshake message from the plaintext records at the start of a stream.

    Gives as much of it as is there; empty when the stream does not start with a handshake record.
    """
    message = bytearray()  # grows in place: a record may bring a single byte
    position = 0
    while len(records) - position > 5 and records[position] == 22:
        size = int.from_bytes(records[position + 3 : position + 5], "big")
        message += records[position + 5 : position + 5 + size]
        if len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4], "big"):
            break
        position += 5 + size
    return bytes(message[: 4 + int.from_bytes(message[1:4], "big")])
