"""`handfast check --explain`: what each listener would do about one client certificate, and why."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto
from OpenSSL.SSL import X509VerificationCodes

from handfast.cli import DONE, FAILED
from handfast.config import Config, Listener
from handfast.errors import ConfigError
from handfast.policy.clients import Clients, Decision, malformed
from handfast.policy.revocation import UNREADABLE
from handfast.policy.rules import CompiledRule, Names, extension
from handfast.process.credentials import Files, Loaded, client_policy
from handfast.tls.alerts import Alert, alert_name
from handfast.tls.certificates import parse_chain

_MAX_FILE: Final = 1 << 20
_MAX_VALUES: Final = 200  # characters
_VALIDITY: Final = {
    X509VerificationCodes.ERR_CERT_NOT_YET_VALID: (
        "certificate_not_yet_valid",
        Alert.BAD_CERTIFICATE,
    ),
    X509VerificationCodes.ERR_CERT_HAS_EXPIRED: ("certificate_expired", Alert.CERTIFICATE_EXPIRED),
}


class Step(msgspec.Struct, frozen=True):
    """One rule that was asked, and what kept it from deciding."""

    rule: str
    applies: bool
    because: str = ""


class Explanation(msgspec.Struct, frozen=True):
    """What one listener does about the certificate. `chain` are subjects, from leaf to anchor."""

    listener: str
    address: str
    allowed: bool
    reason: str
    text: str
    rule: int | None
    alert: str | None
    chain: tuple[str, ...]
    revocation: tuple[str, ...]
    rules: tuple[Step, ...]


def explain(
    config: Config, files: Files, certificate: str, listener: str | None, *, as_json: bool
) -> int:
    """Print for each listener, or those of one name, what becomes of a client that shows the file.

    Gives the exit code: 0 when all of them let it in, else 1. Raises ConfigError when the file
    holds no certificate, or no listener is there to ask.
    """
    chain = _read(certificate)
    now = datetime.datetime.now(datetime.UTC)
    found = tuple(
        explanation(each, loaded, chain, now)
        for each, loaded in zip(config.listeners, files.listeners, strict=True)
        if each.client_auth.mode != "none" and listener in {None, each.name}
    )
    if not found:
        whose = f"no listener named {listener}" if listener is not None else "no listener"
        raise ConfigError(f"{whose} asks for client certificates; see `client-auth`")
    if as_json:
        text = msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n"
    else:
        text = "".join(map(describe, found))
    sys.stdout.write(text)
    return DONE if all(each.allowed for each in found) else FAILED


def explanation(
    listener: Listener,
    loaded: Loaded,
    chain: tuple[x509.Certificate, ...],
    now: datetime.datetime,
) -> Explanation:
    """Decide as after a handshake, and keep what led to it."""
    clients = Clients(client_policy(listener, loaded))
    verified = _verify(chain, loaded.trusted)
    if isinstance(verified, Decision):
        decision, verified = verified, ()
    else:
        ders = tuple(each.public_bytes(Encoding.DER) for each in verified)
        decision = clients.decide(ders, now, trusted=True)
    to_the_rules = decision.rule is not None or decision.reason in {"no_rule", "no_rules"}
    return Explanation(
        listener=listener.name,
        address=str(listener.address),
        allowed=decision.allowed,
        reason=decision.reason,
        text=decision.text,
        rule=decision.rule,
        alert=None if decision.alert is None else alert_name(decision.alert),
        chain=tuple(each.subject.rfc4514_string() for each in verified),
        revocation=tuple(_revocation(clients, each, now) for each in verified[:-1] or verified),
        rules=_steps(clients.rules, verified[0], decision) if to_the_rules else (),
    )


def describe(found: Explanation) -> str:
    """Write an explanation for people."""
    verdict = "allowed" if found.allowed else f"denied ({found.reason}, alert {found.alert})"
    lines = [f"{found.listener} ({found.address}): {verdict}: {found.text}"]
    if found.chain:
        lines.append(f"  trust: {' <- '.join(found.chain)}")
    lines += [f"  revocation: {each}" for each in found.revocation]
    for step in found.rules:
        lines.append(f"  {step.rule}: {'applies' if step.applies else f'no: {step.because}'}")
    return "".join(f"{_printable(line)}\n" for line in lines)


def _verify(
    chain: tuple[x509.Certificate, ...], trusted: tuple[x509.Certificate, ...]
) -> tuple[x509.Certificate, ...] | Decision:
    """Verify as the handshake engine does; give the chain up to the anchor.

    What only the handshake itself refuses is not seen here: keys and hashes that are too weak.
    """
    store = crypto.X509Store()
    for each in trusted:
        store.add_cert(crypto.X509.from_cryptography(each))
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    leaf, *others = map(crypto.X509.from_cryptography, chain)
    context = crypto.X509StoreContext(store, leaf, others)
    try:
        verified = tuple(each.to_cryptography() for each in context.get_verified_chain())
        if not _for_clients(verified):
            text = "its key usage is not that of TLS clients"
            return Decision(False, "unsuitable_purpose", text, alert=Alert.UNSUPPORTED_CERTIFICATE)
    except crypto.X509StoreContextError as error:
        reason, alert = _VALIDITY.get(error.errors[0], ("untrusted", Alert.UNKNOWN_CA))
        whose = error.certificate.to_cryptography().subject.rfc4514_string()
        return Decision(False, reason, f"{whose}: {error}", alert=alert)
    except UNREADABLE as error:
        return malformed(error)
    return verified


def _for_clients(verified: tuple[x509.Certificate, ...]) -> bool:
    """Tell whether OpenSSL takes the chain for a client's (its purpose `sslclient`).

    pyOpenSSL cannot set a purpose for a chain that is verified outside a handshake.
    """
    for each in verified:
        extended = extension(each, x509.ExtendedKeyUsage)
        if extended is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in extended:
            return False
    usage = extension(verified[0], x509.KeyUsage)
    return usage is None or usage.digital_signature or usage.key_agreement


def _revocation(clients: Clients, certificate: x509.Certificate, now: datetime.datetime) -> str:
    finding = clients.revocation.find(certificate, now)
    if finding is not None:
        return finding.text
    subject, issuer = (each.rfc4514_string() for each in (certificate.subject, certificate.issuer))
    if clients.revocation.covers(certificate):
        return f"{subject} is not on the CRL of {issuer}"
    return f"{subject} is not checked: no CRL of {issuer}"


def _steps(
    rules: tuple[CompiledRule, ...], leaf: x509.Certificate, decision: Decision
) -> tuple[Step, ...]:
    names = Names(leaf)
    steps = []
    for rule in rules[: decision.rule]:
        field = rule.mismatch(names)
        if field is None:
            steps.append(Step(rule.text, True))
            continue
        values = ", ".join(rule.values(field, names))[:_MAX_VALUES]
        steps.append(
            Step(rule.text, False, f"its {field} is {values}" if values else f"no {field}")
        )
    return tuple(steps)


def _read(path: str) -> tuple[x509.Certificate, ...]:
    try:
        with Path(path).open("rb") as file:
            return parse_chain(file.read(_MAX_FILE), path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _printable(text: str) -> str:
    """Escape what a terminal would obey: the names are whatever the certificate says."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
