"""Certificates and keys, from PEM bytes to checked values.

The files are read elsewhere; here their contents are parsed and held against each other, so that
a wrong key or an unordered chain is found when the configuration is loaded and not by a client.
`name` in every call is the file's name, for the error.
"""

from __future__ import annotations

import datetime
from itertools import pairwise
from typing import Any, Final, TypeAlias

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import SignatureAlgorithmOID

from handfast.errors import ConfigError

_SIGNATURES: Final = {
    SignatureAlgorithmOID.RSA_WITH_SHA1: "RSA-SHA1",
    SignatureAlgorithmOID.RSA_WITH_SHA224: "RSA-SHA224",
    SignatureAlgorithmOID.RSA_WITH_SHA256: "RSA-SHA256",
    SignatureAlgorithmOID.RSA_WITH_SHA384: "RSA-SHA384",
    SignatureAlgorithmOID.RSA_WITH_SHA512: "RSA-SHA512",
    SignatureAlgorithmOID.RSASSA_PSS: "RSASSA-PSS",
    SignatureAlgorithmOID.ECDSA_WITH_SHA1: "ecdsa-with-SHA1",
    SignatureAlgorithmOID.ECDSA_WITH_SHA224: "ecdsa-with-SHA224",
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: "ecdsa-with-SHA256",
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: "ecdsa-with-SHA384",
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: "ecdsa-with-SHA512",
    SignatureAlgorithmOID.ED25519: "ED25519",
    SignatureAlgorithmOID.ED448: "ED448",
}

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Credential(msgspec.Struct, frozen=True, eq=False):
    """A certificate chain, leaf first, and the private key of its leaf."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey

    def __repr__(self) -> str:
        """Show whose it is; never the key."""
        return f"Credential({self.chain[0].subject.rfc4514_string()})"


class CertificateFacts(msgspec.Struct, frozen=True):
    """What the log tells of a certificate. The fingerprint is SHA-256 in lower-case hex."""

    fingerprint: str
    not_before: str
    not_after: str
    subject: str
    issuer: str


def facts(certificate: x509.Certificate) -> CertificateFacts:
    """Describe a certificate, in texts for the log."""
    return CertificateFacts(
        certificate.fingerprint(hashes.SHA256()).hex(),
        certificate.not_valid_before_utc.isoformat(),
        certificate.not_valid_after_utc.isoformat(),
        certificate.subject.rfc4514_string(),
        certificate.issuer.rfc4514_string(),
    )


def algorithms(certificate: x509.Certificate) -> tuple[str, str]:
    """Name a certificate's key and its signature as OpenSSL does: RSA2048 and RSA-SHA256."""
    key = certificate.public_key()
    oid = certificate.signature_algorithm_oid
    kind = "RSA" if isinstance(key, rsa.RSAPublicKey) else "EC"
    size = getattr(key, "key_size", "")
    return f"{kind}{size}", _SIGNATURES.get(oid, oid.dotted_string)


def certificate_fields(chain: tuple[bytes, ...]) -> dict[str, Any]:
    """Describe the leaf of a client's chain (DER, leaf first) in the fields of an event.

    There are none when it cannot be read.
    """
    if not chain:
        return {}
    try:
        leaf = facts(x509.load_der_x509_certificate(chain[0]))
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm):
        return {}  # OpenSSL reads what this parser refuses
    return {
        "client_cert_fingerprint": leaf.fingerprint,
        "client_cert_subject": leaf.subject,
        "client_cert_issuer": leaf.issuer,
    }


def parse_chain(pem: bytes, name: str) -> tuple[x509.Certificate, ...]:
    """Read the certificates of a PEM file, in the order of the file; at least one."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{name}: no PEM certificate can be read from it ({_first_line(error)}); "
            "it has to hold BEGIN CERTIFICATE blocks"
        ) from None


def check_chain(chain: tuple[x509.Certificate, ...], name: str) -> None:
    """Check that each certificate was issued by the one behind it (RFC 8446, section 4.4.2)."""
    for place, (certificate, issuer) in enumerate(pairwise(chain), 1):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise ConfigError(
                f"{name}: certificate {place} ({certificate.subject.rfc4514_string()}) was not "
                f"issued by certificate {place + 1} ({issuer.subject.rfc4514_string()}); "
                "put the leaf first and behind each certificate its issuer"
            ) from None


def parse_key(pem: bytes, password: bytes | None, name: str) -> PrivateKey:
    """Read a private key, RSA or ECDSA. No error shows the password or any of the key."""
    encrypted = b"ENCRYPTED" in pem
    if encrypted and password is None:
        raise ConfigError(f"{name}: the key is encrypted; give its password")
    try:
        key = load_pem_private_key(pem, password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        remedy = "the password is wrong or the file damaged" if encrypted else "is it a PEM key?"
        raise ConfigError(f"{name}: the private key cannot be read; {remedy}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"{name}: the key is neither RSA nor ECDSA; TLS clients know only those")
    return key


def check_key(leaf: x509.Certificate, key: PrivateKey, leaf_name: str, key_name: str) -> None:
    """Check that the key belongs to the certificate."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    try:
        certified = leaf.public_key().public_bytes(*form)
    except (ValueError, UnsupportedAlgorithm):
        certified = b""
    if certified != key.public_key().public_bytes(*form):
        raise ConfigError(
            f"{key_name}: the key does not match the first certificate of {leaf_name} "
            f"({leaf.subject.rfc4514_string()}); give the key that it was issued for"
        )


def validity(certificate: x509.Certificate, now: datetime.datetime) -> str:
    """Tell what is wrong with the validity at the time `now` (aware): empty when nothing is."""
    if now < certificate.not_valid_before_utc:
        return f"not valid before {certificate.not_valid_before_utc.isoformat()}"
    if now > certificate.not_valid_after_utc:
        return f"expired on {certificate.not_valid_after_utc.isoformat()}"
    return ""


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
