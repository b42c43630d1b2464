"""Rules about certificates, compiled once: globs to one expression a field, networks to numbers.

Globs. `?` is one character, `*` any run, and both stay within a part of the name: a label of a
`dns` name, a segment of a `uri` or `spiffe` path, one side of the @ of an `email`. `**` is a run
that crosses parts. So `*.example.com` is not a.b.example.com, and `https://*.example.com/` is not
https://evil.test/.example.com/. `cn` and `ou` have no parts. Letters count as the field's standard
says: any case for `dns`, the host of a URI and the domain of an `email`; as written elsewhere.

Names and patterns may be long. A run followed by text is an atomic group, tried at its first place
only: for `*` the first place is as good as any, and for `**` the place that ends first is, so
nothing is lost, and one `*` more adds one pass over the name and no factor. (A `**` looks for what
follows it at every place, which is quadratic; hence MAX_NAME.)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, TypeAlias, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from handfast.config import Rule, RuleField

MAX_NAME: Final = 2048
"""Characters in a name of a certificate: as many as a SPIFFE id may have."""

_MAX_TEXT: Final = 120
_PART_ENDS: Final = {"dns": ".", "uri": "/", "spiffe": "/", "email": "@"}
_SPIFFE_ID: Final = re.compile(
    r"spiffe://[a-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)*"
)
_NOTHING: Final = "(?!)"
_Test: TypeAlias = Callable[[str], bool]
_T = TypeVar("_T", bound=x509.ExtensionType)


class Names:
    """What rules can ask of one certificate. Every method raises ValueError for a malformed one."""

    def __init__(self, certificate: x509.Certificate) -> None:
        self._certificate = certificate
        self._known: dict[str, tuple[str, ...]] = {}

    def of(self, field: RuleField) -> tuple[str, ...]:
        """Give the certificate's values of a field, in the case that they are compared in.

        Those of `spiffe` are all SPIFFE URIs, even where `spiffe_id` finds none that is valid.
        """
        if field not in self._known:
            values = tuple(_fold(field, each) for each in self._read(field))
            if any(len(each) > MAX_NAME for each in values):
                raise ValueError(f"a name of more than {MAX_NAME} characters")
            self._known[field] = values
        return self._known[field]

    def spiffe_id(self) -> tuple[str, ...]:
        """Give the SPIFFE id, if this is the leaf of an X509-SVID: one URI and no other, no CA."""
        uris = tuple(_fold("spiffe", each) for each in self.of("uri"))
        valid = len(uris) == 1 and _SPIFFE_ID.fullmatch(uris[0]) and not self._may_sign()
        return uris if valid else ()

    def _read(self, field: RuleField) -> list[str]:
        match field:
            case "cn":
                return self._subject(NameOID.COMMON_NAME)
            case "ou":
                return self._subject(NameOID.ORGANIZATIONAL_UNIT_NAME)
            case "spki":
                return [_spki_digest(self._certificate)]
            case "fingerprint":
                return [hashlib.sha256(self._certificate.public_bytes(Encoding.DER)).hexdigest()]
            case "spiffe":
                return [each for each in self.of("uri") if each.lower().startswith("spiffe:")]
            case _:
                return self._alternative(field)

    def _subject(self, oid: x509.ObjectIdentifier) -> list[str]:
        found = self._certificate.subject.get_attributes_for_oid(oid)
        return [each.value for each in found if isinstance(each.value, str)]

    def _alternative(self, field: RuleField) -> list[str]:
        names = extension(self._certificate, x509.SubjectAlternativeName)
        if names is None:
            return []
        if field == "dns":
            return names.get_values_for_type(x509.DNSName)
        if field == "email":
            return names.get_values_for_type(x509.RFC822Name)
        if field == "uri":
            return names.get_values_for_type(x509.UniformResourceIdentifier)
        found = names.get_values_for_type(x509.IPAddress)
        return [str(each) for each in found if isinstance(each, IPv4Address | IPv6Address)]

    def _may_sign(self) -> bool:
        constraints = extension(self._certificate, x509.BasicConstraints)
        usage = extension(self._certificate, x509.KeyUsage)
        signs = usage is not None and (usage.key_cert_sign or usage.crl_sign)
        return signs or (constraints is not None and constraints.ca)


class CompiledRule:
    """One rule, ready to be asked. `number` counts from 1; `text` is the rule as people read it."""

    __slots__ = ("_tests", "allow", "number", "text")

    def __init__(self, number: int, rule: Rule) -> None:
        self.number = number
        self.allow = rule.allow
        self.text = f"rule {number}: {_shown(rule)}"
        self._tests = tuple((field, _test(field, values)) for field, values in rule.fields)

    def mismatch(self, names: Names) -> RuleField | None:
        """Give the first field of which no value matches; None, when the rule applies.

        In doubt a certificate stays out: a SPIFFE URI that is no valid id is enough for `deny`,
        never for `allow`.
        """
        for field, test in self._tests:
            if not any(map(test, self.values(field, names))):
                return field
        return None

    def values(self, field: RuleField, names: Names) -> tuple[str, ...]:
        """Give the certificate's values that this rule looks at for a field."""
        strict = field == "spiffe" and self.allow
        return names.spiffe_id() if strict else names.of(field)


def glob(field: RuleField, patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Compile globs of a field to one expression, for `fullmatch`."""
    end = _PART_ENDS.get(field)
    one = f"[^{re.escape(end)}]" if end else "."
    each = [_expression(_fold(field, pattern), one) for pattern in patterns]
    return re.compile("|".join(each or [_NOTHING]), re.DOTALL)


def _expression(pattern: str, one: str) -> str:
    first, *others = re.split(r"\*{2,}", pattern)
    if not others:
        return _piece(first, one, last=True)
    middle = "".join(f"(?>.*?{_piece(each, one, last=False)})" for each in others[:-1])
    return f"{_piece(first, one, last=False)}{middle}.*?{_piece(others[-1], one, last=True)}"


def _piece(pattern: str, one: str, *, last: bool) -> str:
    """Translate what has no `**`; the `last` is tied to the end of the name by `fullmatch`."""
    runs = ("".join(one if c == "?" else re.escape(c) for c in run) for run in pattern.split("*"))
    first, *others = runs
    tail = f"{one}*{others.pop()}" if last and others else ""
    return first + "".join(f"(?>{one}*?{each})" for each in others) + tail


def _test(field: RuleField, values: tuple[str, ...]) -> _Test:
    if field in {"spki", "fingerprint"}:
        return frozenset(values).__contains__
    if field == "ip":
        networks = tuple(ip_network(each, strict=False) for each in values)
        return lambda value: any(ip_address(value) in network for network in networks)
    fullmatch = glob(field, values).fullmatch
    return lambda value: fullmatch(value) is not None


def _fold(field: RuleField, text: str) -> str:
    """Put the letters of which the case means nothing in lower case, in a name or a pattern."""
    if field == "dns":
        return text.lower()
    if field == "email":
        local, at, domain = text.rpartition("@")
        return local + at + domain.lower()
    if field in {"uri", "spiffe"}:
        scheme, colon, rest = text.partition("://")
        host, slash, path = rest.partition("/")
        return scheme.lower() + colon + host.lower() + slash + path if colon else text
    return text


def _shown(rule: Rule) -> str:
    fields = "".join(f" {field}={'|'.join(values)}" for field, values in rule.fields)
    text = ("allow" if rule.allow else "deny") + (fields or " any")
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def extension(certificate: x509.Certificate, kind: type[_T]) -> _T | None:
    """Give a certificate's extension, if it has it; raises ValueError for a malformed one."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _spki_digest(certificate: x509.Certificate) -> str:
    """Hash the SubjectPublicKeyInfo as it stands (RFC 7469, section 2.4).

    Not by way of the key object: that writes an RSA-PSS key as a plain RSA key.
    """
    tbs = certificate.tbs_certificate_bytes
    start, _ = _contents(tbs, 0)
    # version [0] (absent in v1), serial, signature, issuer, validity, subject
    for _ in range(5 + (tbs[start] == 0xA0)):
        start = _contents(tbs, start)[1]
    return hashlib.sha256(tbs[start : _contents(tbs, start)[1]]).hexdigest()


def _contents(der: bytes, start: int) -> tuple[int, int]:
    """Give where the value at `start` has its contents and its end; it was parsed before."""
    size, contents = der[start + 1], start + 2
    if size & 0x80:
        contents += size & 0x7F
        size = int.from_bytes(der[start + 2 : contents], "big")
    return contents, contents + size
