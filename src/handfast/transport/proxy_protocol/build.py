"""Build a PROXY header, and find out what it has to say of a TLS session."""

from __future__ import annotations

import socket
import struct
from typing import Final

import google_crc32c
import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from handfast.tls.keys import VERSION_NAMES
from handfast.tls.session import Session
from handfast.transport.proxy_protocol.wire import (
    CRC32C,
    HEAD,
    LOCAL,
    MAPPED,
    PROXY,
    SIGNATURE,
    TCP4,
    TCP6,
    UNSPEC,
    Endpoint,
)

MAX_SENT: Final = 4096
"""Bytes of a header that is built: the most that nginx reads of one."""
MAX_TEXT: Final = 255
"""Bytes of a text in a built header; a longer one is left out."""

_ALPN: Final = 0x01
_AUTHORITY: Final = 0x02
_SSL: Final = 0x20
_SSL_VERSION: Final = 0x21
_SSL_CN: Final = 0x22
_SSL_CIPHER: Final = 0x23
_SSL_SIG_ALG: Final = 0x24
_SSL_KEY_ALG: Final = 0x25
_SSL_GROUP: Final = 0x26
_SSL_SIG_SCHEME: Final = 0x27
_SSL_CLIENT_CERT: Final = 0x28
_CLIENT_SSL: Final = 0x01
_CLIENT_CERT_CONN: Final = 0x02
_CLIENT_CERT_SESS: Final = 0x04
_UNVERIFIED: Final = 1
_CHECKSUM_SIZE: Final = 7


class TlsFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a version 2 header tells of the client's TLS; an empty value is left out.

    `cipher` has OpenSSL's name. `signature_algorithm` and `key_algorithm` are of our certificate,
    `signature_scheme` is what we signed the handshake with. `client_certificate` (DER) is a
    verified one, and `resumed` says that it was shown on an earlier connection of the session.
    """

    version: str
    cipher: str = ""
    group: str = ""
    key_algorithm: str = ""
    signature_algorithm: str = ""
    signature_scheme: str = ""
    client_certificate: bytes = b""
    common_name: str = ""
    resumed: bool = False


def tls_facts(session: Session) -> TlsFacts:
    """Describe an established session of a client."""
    peer = session.peer
    certificate = peer.certificates[0] if peer.certificates else b""
    return TlsFacts(
        version=VERSION_NAMES[session.version],
        cipher=session.suite.openssl_name,
        group=peer.group,
        key_algorithm=peer.key_algorithm,
        signature_algorithm=peer.signature_algorithm,
        client_certificate=certificate,
        common_name=_common_name(certificate) if certificate else "",
        resumed=peer.resumed,
    )


def _common_name(certificate: bytes) -> str:
    try:
        subject = x509.load_der_x509_certificate(certificate).subject
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
        return ""  # what OpenSSL let pass and cryptography does not
    for attribute in subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        if isinstance(attribute.value, str):
            return attribute.value
    return ""


def build_v1(source: Endpoint | None, destination: Endpoint | None) -> bytes:
    """Build a version 1 line; without both addresses it says UNKNOWN."""
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    hosts = _packed(source[0], destination[0])
    if len(hosts[0]) == 4:
        protocol, family = "TCP4", socket.AF_INET
    else:
        protocol, family = "TCP6", socket.AF_INET6
    first, second = (socket.inet_ntop(family, host) for host in hosts)
    return f"PROXY {protocol} {first} {second} {source[1]} {destination[1]}\r\n".encode()


def build_v2(
    source: Endpoint | None,
    destination: Endpoint | None,
    *,
    alpn: str = "",
    authority: str = "",
    tls: TlsFacts | None = None,
) -> bytes:
    """Build a version 2 header with a checksum; without both addresses it says LOCAL.

    `authority` is the name that the client asked for, `tls` None for a client without TLS of ours.
    A text of over MAX_TEXT bytes is left out, and the client's certificate where the header would
    have over MAX_SENT bytes with it.
    """
    command, family, addresses = _addresses(source, destination)
    tlvs = _text(_ALPN, alpn) + _text(_AUTHORITY, authority)
    length = len(addresses) + _CHECKSUM_SIZE + len(tlvs)
    if tls is not None:
        ssl = _ssl(tls, MAX_SENT - HEAD.size - length)
        tlvs, length = tlvs + ssl, length + len(ssl)
    start = HEAD.pack(SIGNATURE, command, family, length) + addresses + bytes((CRC32C, 0, 4))
    checksum: int = google_crc32c.value(start + bytes(4) + tlvs)
    return start + checksum.to_bytes(4, "big") + tlvs


def _addresses(source: Endpoint | None, destination: Endpoint | None) -> tuple[int, int, bytes]:
    """Give the command, the family, and the addresses and ports as they are sent."""
    if source is None or destination is None:
        # HAProxy refuses PROXY without addresses (2.6 was tried), and sends this itself.
        return LOCAL, UNSPEC, b""
    first, second = _packed(source[0], destination[0])
    ports = struct.pack("!HH", source[1], destination[1])
    return PROXY, TCP4 if len(first) == 4 else TCP6, first + second + ports


def _packed(source: str, destination: str) -> tuple[bytes, bytes]:
    """Give both addresses in the family that has room for both."""
    first, second = _pack(source), _pack(destination)
    if len(first) == len(second):
        return first, second
    return _widened(first), _widened(second)


def _widened(packed: bytes) -> bytes:
    return packed if len(packed) == 16 else MAPPED + packed


def _pack(host: str) -> bytes:
    host = host.partition("%")[0]  # the interface of a link-local address means nothing elsewhere
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    packed = socket.inet_pton(socket.AF_INET6, host)
    return packed[12:] if packed.startswith(MAPPED) else packed


def _ssl(tls: TlsFacts, room: int) -> bytes:
    """Build the TLV on TLS, of at most `room` bytes; `room` is enough for all but a certificate."""
    flags, verify = _CLIENT_SSL, _UNVERIFIED
    parts = [
        _text(_SSL_VERSION, tls.version),
        _text(_SSL_CIPHER, tls.cipher),
        _text(_SSL_SIG_ALG, tls.signature_algorithm),
        _text(_SSL_KEY_ALG, tls.key_algorithm),
        _text(_SSL_GROUP, tls.group),
        _text(_SSL_SIG_SCHEME, tls.signature_scheme),
    ]
    if tls.client_certificate:
        flags |= _CLIENT_CERT_SESS if tls.resumed else _CLIENT_CERT_SESS | _CLIENT_CERT_CONN
        verify = 0
        parts.append(_text(_SSL_CN, tls.common_name))
        # Beside the certificate: the heads of its TLV (3 bytes) and of this one (3 and 5).
        if 11 + sum(map(len, parts)) + len(tls.client_certificate) <= room:
            parts.append(_tlv(_SSL_CLIENT_CERT, tls.client_certificate))
    return _tlv(_SSL, struct.pack("!BI", flags, verify) + b"".join(parts))


def _text(kind: int, text: str) -> bytes:
    value = text.encode(errors="replace")
    return _tlv(kind, value) if 0 < len(value) <= MAX_TEXT else b""


def _tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value
