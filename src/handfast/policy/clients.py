"""Who may connect, by client certificate: validity, revocation, trust, rules.

`Clients` is asked after every handshake, full or resumed, and about live connections after a
reload. Everything it has to read is compiled when it is made. The clock is passed in.
"""

from __future__ import annotations

import datetime
import warnings
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from handfast.config import ClientAuthMode, Rule
from handfast.policy.revocation import UNREADABLE, Revocation
from handfast.policy.rules import CompiledRule, Names, extension
from handfast.tls.alerts import Alert
from handfast.tls.certificates import validity


class ClientPolicy(msgspec.Struct, frozen=True):
    """What a listener asks of client certificates. `anchors` and `crls` are DER."""

    mode: ClientAuthMode = "none"
    rules: tuple[Rule, ...] = ()
    crls: tuple[bytes, ...] = ()
    anchors: tuple[bytes, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """Whether a client may connect, and why.

    `reason` is one stable word: not_asked, no_certificate, no_rules, rule_allowed; or, of those
    that are refused, no_certificate, malformed_certificate, certificate_expired,
    certificate_not_yet_valid, certificate_revoked, crl_expired, untrusted, rule_denied, no_rule.
    `text` is for people. `rule` is the number of the rule that decided, from 1. `alert` is what a
    refused client is to be told.
    """

    allowed: bool
    reason: str
    text: str
    rule: int | None = None
    alert: int | None = None


_NOT_ASKED: Final = Decision(True, "not_asked", "no certificate is asked for")
_OPTIONAL: Final = Decision(True, "no_certificate", "a certificate is optional")
_REQUIRED: Final = Decision(
    False, "no_certificate", "a certificate is required", alert=Alert.CERTIFICATE_REQUIRED
)
_UNTRUSTED: Final = Decision(
    False, "untrusted", "it leads to none of the trusted certificates", alert=Alert.UNKNOWN_CA
)
_NO_RULES: Final = Decision(True, "no_rules", "there are no rules")
_NO_RULE: Final = Decision(False, "no_rule", "no rule applies to it", alert=Alert.ACCESS_DENIED)
_FINDING_ALERTS: Final = {
    "certificate_revoked": Alert.CERTIFICATE_REVOKED,
    "crl_expired": Alert.CERTIFICATE_UNKNOWN,
}


class Clients:
    """A listener's policy, compiled: ask `decide`."""

    __slots__ = ("_anchors", "_issuers", "_mode", "revocation", "rules")

    def __init__(self, policy: ClientPolicy) -> None:
        self._mode = policy.mode
        self._anchors = frozenset(policy.anchors)
        self._issuers = _issuers(policy.anchors)
        self.revocation = Revocation(policy.crls)
        self.rules = tuple(
            CompiledRule(number, each) for number, each in enumerate(policy.rules, 1)
        )

    def decide(
        self, chain: tuple[bytes, ...], now: datetime.datetime, *, trusted: bool = False
    ) -> Decision:
        """Decide about the client that showed `chain`: verified when it was shown, DER, leaf first.

        `now` is aware. `trusted` says that the chain need not be led to an anchor: a handshake has
        just done so, or was resumed by a ticket of this policy, or no anchor was taken away since.
        Without it, a certificate of the chain has to be an anchor or issued by one. Of a resumed
        session the leaf alone is known; when an intermediate that is no anchor issued it, the way
        is lost, and the client is refused: connecting anew shows the whole chain.
        Name and path length constraints are for the handshake alone. Never raises for
        what a chain holds: what cannot be read is refused.
        """
        if self._mode == "none":
            return _NOT_ASKED
        if not chain:
            return _REQUIRED if self._mode == "require" else _OPTIONAL
        # The parser warns of oddities that OpenSSL took (a serial number of 0, a country of three
        # letters); a client is not to write to our standard error.
        with warnings.catch_warnings(action="ignore"):
            try:
                certificates = tuple(map(x509.load_der_x509_certificate, chain))
                return (
                    self._against(certificates, now)
                    or (None if trusted else self._distrust(chain, certificates, now))
                    or self._by_rule(certificates[0])
                )
            except UNREADABLE as error:
                return malformed(error)

    def _against(
        self, chain: tuple[x509.Certificate, ...], now: datetime.datetime
    ) -> Decision | None:
        for each in chain:
            if text := validity(each, now):
                return _invalid(each, text, early=now < each.not_valid_before_utc)
        for each in chain:
            if finding := self.revocation.find(each, now):
                alert = _FINDING_ALERTS[finding.reason]
                return Decision(False, finding.reason, finding.text, alert=alert)
        return None

    def _distrust(
        self,
        chain: tuple[bytes, ...],
        certificates: tuple[x509.Certificate, ...],
        now: datetime.datetime,
    ) -> Decision | None:
        if not self._anchors.isdisjoint(chain):
            return None
        for each in certificates:
            for issuer in self._issuers.get(each.issuer, ()):
                if _issued(each, issuer) and not validity(issuer, now):
                    return None
        return _UNTRUSTED

    def _by_rule(self, leaf: x509.Certificate) -> Decision:
        names = Names(leaf)
        for rule in self.rules:
            if rule.mismatch(names) is None:
                if rule.allow:
                    return Decision(True, "rule_allowed", rule.text, rule.number)
                alert = Alert.ACCESS_DENIED
                return Decision(False, "rule_denied", rule.text, rule.number, alert)
        return _NO_RULE if self.rules else _NO_RULES


def malformed(error: Exception) -> Decision:
    """Refuse what cryptography cannot read; OpenSSL is less strict, so it may come this far."""
    text = f"it cannot be read: {str(error).partition(chr(10))[0]}"
    return Decision(False, "malformed_certificate", text, alert=Alert.BAD_CERTIFICATE)


def _invalid(certificate: x509.Certificate, text: str, *, early: bool) -> Decision:
    """Refuse with the alert that OpenSSL sends for the same."""
    reason = "certificate_not_yet_valid" if early else "certificate_expired"
    alert = Alert.BAD_CERTIFICATE if early else Alert.CERTIFICATE_EXPIRED
    subject = certificate.subject.rfc4514_string()
    return Decision(False, reason, f"{subject}: {text}", alert=alert)


def _issuers(anchors: tuple[bytes, ...]) -> dict[x509.Name, list[x509.Certificate]]:
    """Give the anchors that are CAs, by name: a pinned leaf vouches for itself alone."""
    issuers: dict[x509.Name, list[x509.Certificate]] = {}
    for each in map(x509.load_der_x509_certificate, anchors):
        if _is_ca(each):
            issuers.setdefault(each.subject, []).append(each)
    return issuers


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = extension(certificate, x509.BasicConstraints)
        usage = extension(certificate, x509.KeyUsage)
    except UNREADABLE:
        return False
    if constraints is None:
        return certificate.version is x509.Version.v1  # which has no extension to say so in
    return constraints.ca and (usage is None or usage.key_cert_sign)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True
