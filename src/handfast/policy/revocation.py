"""Certificate revocation lists (RFC 5280, section 5).

A list is believed because one of the trusted certificates signed it, which `check_crls` finds out
when the configuration is loaded; `Revocation` takes it from there. Whom a list is about is told by
its issuer's name: certificates of issuers without a list are not checked, and those of an issuer
whose list has expired are all refused, for nobody knows what has been revoked since.

A list of 100,000 entries is 5 MB of DER and stays DER; looking a serial number up in it is a scan
of 10 ms. So the lower 64 bits of the serial numbers are kept in order beside it (0.8 MB, made in
0.1 s), and only for a number that is among them is the list asked.
"""

from __future__ import annotations

import base64
import datetime
import re
from array import array
from bisect import bisect_left
from typing import Final, Literal, TypeAlias

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from handfast.errors import ConfigError, Problem

_PEM: Final = re.compile(rb"-----BEGIN X509 CRL-----(.*?)-----END X509 CRL-----", re.DOTALL)
_Key: TypeAlias = tuple[tuple[str, str | bytes], ...]
_LOW: Final = (1 << 64) - 1
# What the lazy parser of certificates and lists raises, some of it only when a field is asked for.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class Finding(msgspec.Struct, frozen=True):
    """Why a certificate is refused."""

    reason: Literal["certificate_revoked", "crl_expired"]
    text: str


def parse_crls(data: bytes, name: str) -> tuple[bytes, ...]:
    """Give the lists of a file, PEM (any number) or DER (one), as DER; `name` is the file's."""
    blocks = _PEM.findall(data)
    try:
        lists = tuple(base64.b64decode(each) for each in blocks) or (data,)
        for each in lists:
            x509.load_der_x509_crl(each)
    except UNREADABLE:
        raise ConfigError(
            f"{name}: no revocation list can be read from it; "
            "it has to hold BEGIN X509 CRL blocks, or one list in DER"
        ) from None
    return lists


def check_crls(
    crls: tuple[bytes, ...], trusted: tuple[x509.Certificate, ...], now: datetime.datetime
) -> tuple[str, ...]:
    """Check lists (DER) against the trusted certificates, one of which has to have signed each.

    Gives warnings: of lists that have expired at `now` (aware). Raises ConfigError for a list that
    no trusted certificate signed and for one that means more than `Revocation` understands.
    """
    problems: list[Problem] = []
    for each in crls:
        crl = x509.load_der_x509_crl(each)
        try:
            problem = _foreign(crl) or _unsigned(crl, trusted)
        except UNREADABLE as error:
            problem = f"is malformed ({str(error).partition(chr(10))[0]}); issue it again"
        if problem:
            problems.append(Problem(f"the CRL of {_name(crl.issuer)} {problem}"))
    if problems:
        raise ConfigError(*problems)
    return Revocation(crls, indexed=False).expired(now)


def _foreign(crl: x509.CertificateRevocationList) -> str:
    """Tell what a list is that we cannot follow."""
    for extension in crl.extensions:
        value = extension.value
        if isinstance(value, x509.DeltaCRLIndicator):
            return "is a delta CRL; give the complete one"
        if isinstance(value, x509.IssuingDistributionPoint):
            if value.indirect_crl:
                return "is an indirect CRL; give one that is of the issuer's own certificates"
            if value.only_some_reasons or value.only_contains_attribute_certs:
                return "covers only some reasons or attribute certificates; give the complete one"
        elif extension.critical and isinstance(value, x509.UnrecognizedExtension):
            oid = extension.oid.dotted_string
            return f"has the unknown critical extension {oid}; give one without"
    return ""


def _unsigned(crl: x509.CertificateRevocationList, trusted: tuple[x509.Certificate, ...]) -> str:
    """Tell that none of the trusted certificates signed the list."""
    named = [each for each in trusted if _key(each.subject) == _key(crl.issuer)]
    if not named:
        return "is of no trusted certificate; add the issuing certificate to trusted-certs"
    for each in named:
        key = each.public_key()
        try:
            if crl.is_signature_valid(key):  # type: ignore[arg-type]  # raises TypeError for others
                return ""
        except (TypeError, UnsupportedAlgorithm):
            continue
    return (
        "is signed by another key than the trusted certificate of that name has; "
        "add the certificate of the key that signed it to trusted-certs"
    )


class Revocation:
    """The lists of one listener. They were checked: see `check_crls`.

    Of several lists of one issuer the latest counts, but one for each scope (IssuingDistribution-
    Point: user certificates, CA certificates, a part of them). `indexed` False leaves `find` slow.
    """

    def __init__(self, crls: tuple[bytes, ...], *, indexed: bool = True) -> None:
        latest: dict[tuple[_Key, bytes], x509.CertificateRevocationList] = {}
        for each in crls:
            crl = x509.load_der_x509_crl(each)
            scope = _key(crl.issuer), _scope(crl)
            known = latest.get(scope)
            if known is None or known.last_update_utc <= crl.last_update_utc:
                latest[scope] = crl
        self._lists: dict[_Key, list[_List]] = {}
        for (issuer, _), crl in latest.items():
            self._lists.setdefault(issuer, []).append(_List(crl, indexed=indexed))

    def __bool__(self) -> bool:
        """Tell whether there is any list."""
        return bool(self._lists)

    def covers(self, certificate: x509.Certificate) -> bool:
        """Tell whether there is a list of the certificate's issuer."""
        return bool(self._lists) and _key(certificate.issuer) in self._lists

    def find(self, certificate: x509.Certificate, now: datetime.datetime) -> Finding | None:
        """Look a certificate up; None when nothing is against it at `now` (aware)."""
        if not self._lists:
            return None
        lists = self._lists.get(_key(certificate.issuer), ())
        for each in lists:
            if text := each.revoked(certificate):
                return Finding("certificate_revoked", text)
        for each in lists:
            if text := each.expired(now):
                return Finding("crl_expired", text)
        return None

    def expired(self, now: datetime.datetime) -> tuple[str, ...]:
        """Give a warning for each list that has expired."""
        texts = (each.expired(now) for lists in self._lists.values() for each in lists)
        return tuple(f"{text}; its certificates are refused" for text in texts if text)


class _List:
    """One list and the lower halves of the serial numbers on it, in order."""

    __slots__ = ("_crl", "_serials")

    def __init__(self, crl: x509.CertificateRevocationList, *, indexed: bool) -> None:
        self._crl = crl
        self._serials: array[int] | None = None
        if indexed:
            self._serials = array("Q", sorted(each.serial_number & _LOW for each in crl))

    def expired(self, now: datetime.datetime) -> str:
        end = self._crl.next_update_utc
        if end is None or now <= end:
            return ""
        return f"the CRL of {_name(self._crl.issuer)} expired on {end.isoformat()}"

    def revoked(self, certificate: x509.Certificate) -> str:
        serial = certificate.serial_number
        if self._serials is not None and not _among(self._serials, serial & _LOW):
            return ""
        entry = self._crl.get_revoked_certificate_by_serial_number(serial)
        if entry is None:
            return ""
        when = entry.revocation_date_utc.isoformat()
        return f"{_name(certificate.subject)} was revoked on {when}{_reason(entry)}"


def _among(serials: array[int], serial: int) -> bool:
    place = bisect_left(serials, serial)
    return place < len(serials) and serials[place] == serial


def _reason(entry: x509.RevokedCertificate) -> str:
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except (x509.ExtensionNotFound, *UNREADABLE):
        return ""  # a malformed reason takes nothing back
    return f": {reason.name.replace('_', ' ')}"


def _key(name: x509.Name) -> _Key:
    """Give what two spellings of one name have in common (RFC 5280, section 7.1).

    OpenSSL takes names that differ in case and spaces for the same, so lists must be found by
    either.
    """
    return tuple((each.oid.dotted_string, _plain(each.value)) for each in name)


def _plain(value: str | bytes) -> str | bytes:
    return " ".join(value.casefold().split()) if isinstance(value, str) else value


def _name(name: x509.Name) -> str:
    return name.rfc4514_string() or "(an empty name)"


def _scope(crl: x509.CertificateRevocationList) -> bytes:
    try:
        point = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    except x509.ExtensionNotFound:
        return b""
    return point.value.public_bytes()
