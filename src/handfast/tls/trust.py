"""Whether a server's certificate leads to one that is trusted (RFC 5280, section 6).

OpenSSL could do it in the handshake, but it asks back there, by a callback of the context's, and
such callbacks need memory that is both writable and executable: a process in a sandbox cannot make
any. So one context does for all servers that are talked to, and the chain is verified when the
handshake is done, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

_FOR_SERVERS: Final = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}


class Trust:
    """The certificates (DER) that are trusted as they stand: roots, intermediates, or leaves."""

    __slots__ = ("_store",)

    def __init__(self, anchors: Iterable[bytes]) -> None:
        self._store = crypto.X509Store()
        self._store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        for der in anchors:
            self._store.add_cert(crypto.load_certificate(crypto.FILETYPE_ASN1, der))

    def problem(self, chain: tuple[bytes, ...]) -> str:
        """Tell why a server that showed this chain (DER, leaf first) is not trusted; else empty."""
        if not chain:
            return "it showed no certificate"
        try:
            leaf, *others = (crypto.load_certificate(crypto.FILETYPE_ASN1, each) for each in chain)
            verified = crypto.X509StoreContext(self._store, leaf, others).get_verified_chain()
        except crypto.X509StoreContextError as error:
            return f"its certificate is not trusted: {error}"
        except crypto.Error:
            return "its certificate cannot be read"
        # What is trusted as it stands is trusted for servers, but for a leaf that says otherwise.
        if all(_is_for_servers(each) for each in verified[:-1] or verified):
            return ""
        return "its certificate is not for servers"


def _is_for_servers(certificate: crypto.X509) -> bool:
    """Tell whether the certificate allows it (RFC 5280, section 4.2.1.12): all do, or it lists."""
    try:
        extensions = certificate.to_cryptography().extensions
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension,
            x509.UnsupportedGeneralNameType, UnsupportedAlgorithm):  # fmt: skip
        return False
    return not _FOR_SERVERS.isdisjoint(usage)
