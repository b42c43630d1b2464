"""Certificates for the tests, made in memory and written where a test wants them."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
LOOPBACK: Final = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def new_key(kind: str = "ecdsa") -> Key:
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Identity:
    """A certificate, its key, and what issued it (itself, for a root)."""

    certificate: x509.Certificate
    key: Key
    issuer: Identity | None = None

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Leaf first, without the root."""
        if self.issuer is None:
            return (self.certificate,)
        above = self.issuer.chain if self.issuer.issuer is not None else ()
        return (self.certificate, *above)

    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def chain_pem(self) -> bytes:
        return b"".join(each.public_bytes(Encoding.PEM) for each in self.chain)

    def key_pem(self, password: str | None = None) -> bytes:
        encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

    def write(self, directory: Path, name: str, password: str | None = None) -> tuple[Path, Path]:
        """Write NAME.pem (the chain) and NAME-key.pem; give both paths."""
        chain, key = directory / f"{name}.pem", directory / f"{name}-key.pem"
        chain.write_bytes(self.chain_pem())
        key.write_bytes(self.key_pem(password))
        key.chmod(0o600)
        return chain, key


def issue(
    name: str,
    issuer: Identity | None = None,
    *,
    ca: bool = False,
    kind: str = "ecdsa",
    client: bool = False,
    unit: str = "",
    names: Sequence[x509.GeneralName] | None = None,
    not_before: datetime.datetime = NOW - DAY,
    not_after: datetime.datetime = NOW + 30 * DAY,
) -> Identity:
    """Issue a certificate for NAME: a CA, a server (localhost and loopback too) or a client.

    `names` are its alternative names instead of those, `unit` its organizational unit.
    """
    key = new_key(kind)
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if unit:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    subject = x509.Name(attributes)
    issuer_name = subject if issuer is None else issuer.certificate.subject
    signer = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if ca:
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = builder.add_extension(usage, critical=True)
    else:
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if names is None:
            names = [x509.DNSName(name), *(() if client else LOOPBACK)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Identity(builder.sign(signer, hashes.SHA256()), key, issuer)


def revocation_list(issuer: Identity, *revoked: Identity, signer: Identity | None = None) -> bytes:
    """Issue a CRL, as PEM; `signer` forges it."""
    builder = x509.CertificateRevocationListBuilder(
        issuer.certificate.subject, NOW - DAY, NOW + 30 * DAY
    )
    for each in revoked:
        entry = x509.RevokedCertificateBuilder(each.certificate.serial_number, NOW - DAY)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign((signer or issuer).key, hashes.SHA256()).public_bytes(Encoding.PEM)
