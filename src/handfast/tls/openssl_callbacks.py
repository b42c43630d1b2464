"""What OpenSSL tells of the certificates that it refuses, while a handshake is driven.

One handshake is driven at a time, so what lies in the list is that one's; whoever drives it clears
it before.
"""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL, crypto

refused: Final[list[tuple[str, bytes]]] = []
"""Why, and the leaf (DER) when it was the one."""


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
