"""Certificates with any names, and revocation lists, for the tests of policy."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from harness.pki import DAY, NOW, Identity, Key

_KEY = ec.generate_private_key(ec.SECP256R1())  # whose key it is matters to no rule


def named(*, cn: Iterable[str] = (), ou: Iterable[str] = ()) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, each) for each in cn]
    units = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, each) for each in ou]
    return x509.Name([*units, *attributes])


def certificate(
    issuer: Identity,
    *,
    cn: Iterable[str] = ("client",),
    ou: Iterable[str] = (),
    alternative: Iterable[x509.GeneralName] = (),
    extensions: Iterable[x509.ExtensionType] = (),
    serial: int = 0,
    key: Key = _KEY,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(cn=cn, ou=ou))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 30 * DAY)
    )
    if names := list(alternative):
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for each in extensions:
        builder = builder.add_extension(each, critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def der(*certificates: x509.Certificate) -> tuple[bytes, ...]:
    return tuple(each.public_bytes(Encoding.DER) for each in certificates)


def crl(
    issuer: Identity,
    *revoked: x509.Certificate | int,
    signer: Identity | None = None,
    last_update: datetime.datetime = NOW - DAY,
    next_update: datetime.datetime = NOW + DAY,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> x509.CertificateRevocationList:
    """Issue a list; `signer` forges it; `extensions` tell whether they are critical."""
    builder = x509.CertificateRevocationListBuilder(
        issuer.certificate.subject, last_update, next_update
    )
    for each in revoked:
        serial = each if isinstance(each, int) else each.serial_number
        entry = x509.RevokedCertificateBuilder(serial, NOW - DAY).add_extension(
            x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False
        )
        builder = builder.add_revoked_certificate(entry.build())
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign((signer or issuer).key, hashes.SHA256())
