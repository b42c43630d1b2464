"""A private CA and a certificate for localhost, for the embedded default.

Made once and kept under the state directory, keys with mode 0600; the certificate is made anew
when it is about to expire. For trying things out on one machine: no other should trust this CA.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import stat
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from handfast.errors import HandfastError

_CA_DAYS: Final = 3650
_LEAF_DAYS: Final = 90
_RENEW_DAYS: Final = 7


class DevelopmentCertificate(msgspec.Struct, frozen=True):
    """The files: the CA for clients to trust, and the chain and key to serve with."""

    ca: Path
    chain: Path
    key: Path


def files_in(directory: Path) -> DevelopmentCertificate:
    """Name the files, whether they are there or not."""
    return DevelopmentCertificate(
        directory / "ca.pem", directory / "localhost.pem", directory / "localhost-key.pem"
    )


def prepare(directory: Path) -> DevelopmentCertificate:
    """Give the files, making what is missing or expiring; raises HandfastError."""
    files = files_in(directory)
    now = datetime.datetime.now(datetime.UTC)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if stat.S_IMODE(directory.stat().st_mode) & 0o022:
            raise HandfastError(f"{directory} can be written by others; chmod 700 it")
        if not _lasts(files.ca, now):
            _make_ca(directory, now)
            files.chain.unlink(missing_ok=True)
        if not _lasts(files.chain, now) or not files.key.exists():
            _make_leaf(directory, files, now)
    except (OSError, ValueError) as error:
        raise HandfastError(
            f"the development certificate under {directory} is unusable ({error}); "
            "delete that directory to have it made again"
        ) from None
    return files


def _lasts(path: Path, now: datetime.datetime) -> bool:
    if not path.exists():
        return False
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.not_valid_after_utc - now > datetime.timedelta(days=_RENEW_DAYS)


def _make_ca(directory: Path, now: datetime.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("handfast development CA")
    usage = _key_usage(certificate_sign=True)
    certificate = (
        _builder(name, name, key.public_key(), now, _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(directory / "ca-key.pem", _private(key), 0o600)
    _write(directory / "ca.pem", certificate.public_bytes(Encoding.PEM), 0o644)


def _make_leaf(directory: Path, files: DevelopmentCertificate, now: datetime.datetime) -> None:
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    ca_key = load_pem_private_key((directory / "ca-key.pem").read_bytes(), None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ValueError("ca-key.pem is not the key that was made")  # noqa: TRY004 - of a file
    key = ec.generate_private_key(ec.SECP256R1())
    loopback = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    names = [x509.DNSName("localhost"), *map(x509.IPAddress, loopback)]
    certificate = (
        _builder(_name("localhost"), ca.subject, key.public_key(), now, _LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(certificate_sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write(files.key, _private(key), 0o600)
    _write(files.chain, certificate.public_bytes(Encoding.PEM), 0o644)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _key_usage(*, certificate_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificate_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificate_sign,
        crl_sign=certificate_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole or not at all, and never readable by others before its mode is set."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - from a descriptor
        file.write(data)
    temporary.rename(path)
