"""Server certificates for any names, with keys of either kind."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509

from handfast.tls.certificates import Credential
from harness.pki import Identity, Key, issue, new_key
from unit.policy.authority import certificate

ROOT = issue("test root of names", ca=True)
KEYS: dict[str, Key] = {kind: new_key(kind) for kind in ("ecdsa", "rsa")}


def server(
    *names: str, kind: str = "ecdsa", issuer: Identity = ROOT, cn: str = "server"
) -> Credential:
    """A credential for these names; without any, its certificate has no subjectAltName."""
    alternative: Iterable[x509.GeneralName] = [x509.DNSName(each) for each in names]
    leaf = certificate(issuer, cn=(cn,), alternative=alternative, key=KEYS[kind])
    above = issuer.chain if issuer.issuer is not None else ()
    return Credential((leaf, *above), KEYS[kind])
