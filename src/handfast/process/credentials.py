"""Read certificates, keys and trust anchors from their files.

Only the template of the acceptors does so, and `handfast check`: never a process that relays are
forked from.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from handfast.config import Certificate, Config, HandoffAddress, Listener
from handfast.errors import ConfigError, Problem
from handfast.observe.events import CertLoaded, Doubtful, Event
from handfast.observe.status import CertificateExpiry
from handfast.policy.clients import ClientPolicy
from handfast.policy.revocation import Revocation, check_crls, parse_crls
from handfast.process.ownership import user_id
from handfast.tls.certificates import (
    Credential,
    check_chain,
    check_key,
    facts,
    parse_chain,
    parse_key,
    validity,
)
from handfast.tls.keys import TLS12, TLS13
from handfast.tls.openssl import OpenSSLEngine

P = ParamSpec("P")
T = TypeVar("T")

_VERSIONS: Final = {"1.2": TLS12, "1.3": TLS13}
_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)


class Loaded(msgspec.Struct, frozen=True, eq=False):
    """One listener's files, read and checked. `crls` are DER; `warnings` are about them."""

    credentials: tuple[Credential, ...]
    trusted: tuple[x509.Certificate, ...]
    crls: tuple[bytes, ...]
    warnings: tuple[str, ...]


class Files(msgspec.Struct, frozen=True, eq=False):
    """All that a configuration names: by listener, and the anchors (DER) for targets' TLS.

    `anchors` are by the file's name; the empty name stands for what the system trusts. `accounts`
    are the users that are named as those of applications, with their numbers.
    """

    listeners: tuple[Loaded, ...]
    anchors: dict[str, tuple[bytes, ...]]
    accounts: dict[str, int] = {}


def load_all(config: Config, now: datetime.datetime) -> Files:
    """Load every file that is named; raise one ConfigError with all that is wrong."""
    problems: list[Problem] = []
    loaded: list[Loaded] = []
    for number, listener in enumerate(config.listeners):
        try:
            loaded.append(_load(listener, now))
        except ConfigError as error:
            path = f"listeners[{number}]"
            problems += [Problem(each.message, each.path or path) for each in error.problems]
    collect = Collector(problems)
    found = (each.tls.trusted_certs or ("",) for each in config.targets if each.tls is not None)
    files = {file for trusted in found for file in trusted}
    anchors = {file: collect(_anchors, file) or () for file in sorted(files)}
    accounts = {user: collect(user_id, user) or 0 for user in sorted(_users(config))}
    if problems:
        raise ConfigError(*problems)
    return Files(tuple(loaded), anchors, accounts)


def _users(config: Config) -> set[str]:
    """Give the users that are named as those of applications."""
    addresses = [each.address for each in config.targets]
    return {each.user for each in addresses if isinstance(each, HandoffAddress) and each.user}


def engine(listener: Listener, loaded: Loaded) -> OpenSSLEngine | None:
    """Make a listener's handshake engine, if it ends TLS at all; raises ConfigError."""
    if not loaded.credentials:
        return None
    return OpenSSLEngine(
        loaded.credentials,
        trusted=loaded.trusted,
        require=listener.client_auth.mode == "require",
        alpn=listener.alpn,
        versions=tuple(_VERSIONS[each] for each in listener.tls.versions),
        suites=listener.tls.ciphersuites,
        post_quantum=listener.tls.require_post_quantum,
    )


def client_policy(listener: Listener, loaded: Loaded) -> ClientPolicy:
    """Put together what decides about a listener's clients."""
    auth = listener.client_auth
    anchors = tuple(each.public_bytes(Encoding.DER) for each in loaded.trusted)
    return ClientPolicy(auth.mode, auth.rules, loaded.crls, anchors)


def events(loaded: Loaded, now: datetime.datetime) -> list[Event]:
    """Describe what was loaded, for the log."""
    found: list[Event] = []
    for credential in loaded.credentials:
        roles = ["leaf", *["server_ca"] * (len(credential.chain) - 1)]
        found += [_event(*each, now) for each in zip(roles, credential.chain, strict=True)]
    found += [_event("client_ca", certificate, now) for certificate in loaded.trusted]
    return [*found, *(Doubtful(error_msg=each) for each in loaded.warnings)]


def expiries(listener: str, loaded: Loaded) -> list[CertificateExpiry]:
    """Tell when a listener's certificates end."""
    found = []
    for credential in loaded.credentials:
        leaf = credential.chain[0]
        about = facts(leaf)
        end = leaf.not_valid_after_utc.timestamp()
        found.append(CertificateExpiry(listener, about.subject, about.fingerprint, end))
    return found


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


class Collector:
    """Runs steps and keeps the problems of those that fail, so that one does not hide the next."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems

    def __call__(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Give what the step gives, or None when it has problems."""
        try:
            return step(*args, **kwargs)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return None


def _load(listener: Listener, now: datetime.datetime) -> Loaded:
    problems: list[Problem] = []
    collect = Collector(problems)
    auth = listener.client_auth
    found = [collect(_credential, each) for each in listener.certificates]
    trusted = collect(_certificates, auth.trusted_certs) or ()
    parsed = [collect(_crls, path, trusted, now) or () for path in auth.crls]
    if problems:
        raise ConfigError(*problems)
    crls = tuple(der for each in parsed for der in each)
    warnings = Revocation(crls, indexed=False).expired(now)
    credentials = tuple(each for each in found if each is not None)
    loaded = Loaded(credentials, trusted, crls, warnings)
    engine(listener, loaded)  # what OpenSSL refuses (a key too short, say) it refuses here
    return loaded


def _crls(
    path: str, trusted: tuple[x509.Certificate, ...], now: datetime.datetime
) -> tuple[bytes, ...]:
    crls = parse_crls(_read(path), path)
    if not trusted:
        return crls  # what is wrong with those is told already
    try:
        check_crls(crls, trusted, now)
    except ConfigError as error:
        raise ConfigError(*(f"{path}: {each.message}" for each in error.problems)) from None
    return crls


def _anchors(file: str) -> tuple[bytes, ...]:
    certificates = _certificates((file,) if file else (_system_bundle(),))
    return tuple(each.public_bytes(Encoding.DER) for each in certificates)


def _system_bundle() -> str:
    """Find the file of what the system trusts, where distributions have it."""
    given = os.environ.get("SSL_CERT_FILE")
    found = [path for path in ([given] if given else _BUNDLES) if Path(path).is_file()]
    if not found:
        raise ConfigError(
            "a target's `tls` without `trusted-certs` relies on the system's certificates, and "
            "there are none; install the package ca-certificates, or name `trusted-certs`"
        )
    return found[0]


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
