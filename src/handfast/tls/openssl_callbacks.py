"""What OpenSSL tells while a handshake is driven: lines of its key log, and refused certificates.

One handshake is driven at a time, so what lies in these two lists is that one's; whoever drives it
clears them before.
"""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL, crypto

SECRET_LABELS: Final = (b"CLIENT_TRAFFIC_SECRET_0 ", b"SERVER_TRAFFIC_SECRET_0 ")
"""How the lines that are kept begin: by the client, by the server."""

secret_lines: Final[list[bytes]] = []
refused: Final[list[tuple[str, bytes]]] = []
"""Why, and the leaf (DER) when it was the one."""


def keep_secret(_connection: SSL.Connection, line: bytes) -> None:
    """Take a line of the key log."""
    if line.startswith(SECRET_LABELS):
        secret_lines.append(line)


def keep_verification(
    _connection: SSL.Connection, certificate: Any, code: int, depth: int, ok: int
) -> bool:
    """Take what the verification says of one certificate, and leave it at that."""
    if not ok:
        refused.append((_verification_text(code), encoded(certificate) if depth == 0 else b""))
    return bool(ok)


def _verification_text(code: int) -> str:
    names = SSL.X509VerificationCodes
    for name in dir(names):
        if name.startswith("ERR_") and getattr(names, name) == code:
            return name.removeprefix("ERR_").lower().replace("_", " ")
    return f"verification error {code}"


def encoded(certificate: crypto.X509) -> bytes:
    """Give a certificate as DER."""
    # Not by way of cryptography, which parses more strictly than OpenSSL and would raise.
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
