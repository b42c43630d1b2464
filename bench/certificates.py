"""The certificates of a run, and the files that each system wants them in."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate in files: `both` has the key behind the chain, as some want it."""

    chain: Path
    key: Path
    both: Path


def issue(
    directory: Path, stem: str = "ecdsa", name: str = "localhost", *, rsa_key: bool = False
) -> Certificate:
    """Make one for `name` and 127.0.0.1, on P-256 or with RSA-2048, in place of an older one."""
    key = (
        rsa.generate_private_key(public_exponent=65537, key_size=2048)
        if rsa_key
        else ec.generate_private_key(ec.SECP256R1())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = [x509.DNSName(name), x509.IPAddress(ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    made = Certificate(*(directory / f"{stem}.{end}" for end in ("chain.pem", "key.pem", "pem")))
    for path, text in ((made.chain, public), (made.key, private), (made.both, public + private)):
        replaced = path.with_suffix(".new")
        replaced.touch(mode=0o600)
        replaced.write_bytes(text)
        replaced.rename(path)
    return made
