"""Read certificates, keys and trust anchors from their files.

Only the template of the acceptors does so, and `handfast check`: never a process that relays are
forked from.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography import x509

from handfast.config import Certificate, Config, Listener
from handfast.errors import ConfigError, Problem
from handfast.observe.events import CertLoaded
from handfast.tls.certificates import (
    Credential,
    check_chain,
    check_key,
    facts,
    parse_chain,
    parse_key,
    validity,
)
from handfast.tls.openssl import OpenSSLEngine


class Loaded(msgspec.Struct, frozen=True, eq=False):
    """One listener's certificates, read and checked."""

    credential: Credential
    trusted: tuple[x509.Certificate, ...]


def load_all(config: Config) -> tuple[Loaded, ...]:
    """Load every listener's files; raise one ConfigError with all that is wrong."""
    loaded: list[Loaded] = []
    problems: list[Problem] = []
    for number, listener in enumerate(config.listeners):
        try:
            loaded.append(_load(listener))
        except ConfigError as error:
            path = f"listeners[{number}]"
            problems += [Problem(each.message, each.path or path) for each in error.problems]
    if problems:
        raise ConfigError(*problems)
    return tuple(loaded)


def engine(listener: Listener, loaded: Loaded) -> OpenSSLEngine:
    """Make the handshake engine of a listener; raises ConfigError."""
    return OpenSSLEngine(
        loaded.credential,
        trusted=loaded.trusted,
        require=listener.client_auth.mode == "require",
        alpn=listener.alpn,
    )


def events(loaded: Loaded, now: datetime.datetime) -> list[CertLoaded]:
    """Describe what was loaded, for the log."""
    roles = ["leaf", *["server_ca"] * (len(loaded.credential.chain) - 1)]
    pairs = [*zip(roles, loaded.credential.chain, strict=True)]
    pairs += [("client_ca", certificate) for certificate in loaded.trusted]
    return [_event(role, certificate, now) for role, certificate in pairs]


def _event(role: str, certificate: x509.Certificate, now: datetime.datetime) -> CertLoaded:
    about = facts(certificate)
    return CertLoaded(
        cert_role=role,  # type: ignore[arg-type]  # one of the three above
        cert_fingerprint=about.fingerprint,
        cert_notbefore=about.not_before,
        cert_notafter=about.not_after,
        cert_subject=about.subject,
        cert_issuer=about.issuer,
        error_msg=validity(certificate, now),
    )


def _load(listener: Listener) -> Loaded:
    problems: list[Problem] = []

    def collect(step: Callable[[], Credential | tuple[x509.Certificate, ...]]) -> object:
        try:
            return step()
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    credential = collect(lambda: _credential(listener.certificates[0]))
    trusted = collect(lambda: _certificates(listener.client_auth.trusted_certs))
    if not isinstance(credential, Credential) or not isinstance(trusted, tuple):
        raise ConfigError(*problems)
    loaded = Loaded(credential, trusted)
    engine(listener, loaded)  # what OpenSSL refuses (a key too short, say) it refuses here
    return loaded


def _credential(certificate: Certificate) -> Credential:
    files = (certificate.chain,) if certificate.chain else (certificate.cert or "",)
    # The document's `cacerts` go from the root down; a chain goes from the leaf up.
    chain = ordered(_certificates(files), _certificates(certificate.cacerts))
    name = ", ".join((*files, *certificate.cacerts))
    check_chain(chain, name)
    key = parse_key(_read(certificate.key), _password(certificate), certificate.key)
    check_key(chain[0], key, files[0], certificate.key)
    return Credential(chain, key)


def ordered(
    first: tuple[x509.Certificate, ...], others: tuple[x509.Certificate, ...]
) -> tuple[x509.Certificate, ...]:
    """Put separately given CA certificates behind the leaf, each behind the one it issued.

    What issued none of them goes to the end, where `check_chain` names it.
    """
    chain, left = list(first), list(others)
    while left:
        issuer = next((each for each in left if each.subject == chain[-1].issuer), left[0])
        chain.append(issuer)
        left.remove(issuer)
    return tuple(chain)


def _certificates(paths: tuple[str, ...]) -> tuple[x509.Certificate, ...]:
    return tuple(each for path in paths for each in parse_chain(_read(path), path))


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _password(certificate: Certificate) -> bytes | None:
    if certificate.key_password is not None:
        return certificate.key_password.reveal().encode()
    if certificate.key_password_file is not None:
        return _read(certificate.key_password_file).rstrip(b"\r\n")
    name = certificate.key_password_env
    if name is None:
        return None
    try:
        return os.environb[name.encode()]
    except KeyError:
        raise ConfigError(f"{name}: this environment variable is not set") from None
