"""Which certificates a rule applies to."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import time
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from handfast.config import Rule, RuleField
from handfast.policy.rules import MAX_NAME, CompiledRule, Names, glob
from harness.pki import issue
from unit.policy.authority import certificate

ROOT = issue("root", ca=True)


def applies(rule: Rule, subject: x509.Certificate) -> bool:
    return CompiledRule(1, rule).mismatch(Names(subject)) is None


def allow(field: RuleField, *values: str) -> Rule:
    return Rule(allow=True, fields=((field, values),))


def deny(field: RuleField, *values: str) -> Rule:
    return Rule(allow=False, fields=((field, values),))


def showing(field: RuleField, name: str) -> x509.Certificate:
    """Issue a certificate with this value of a field."""
    if field == "cn":
        return certificate(ROOT, cn=[name])
    kinds: dict[str, Any] = {"dns": x509.DNSName, "email": x509.RFC822Name}
    kind = kinds.get(field, x509.UniformResourceIdentifier)
    # A CA may write what the constructor would not take.
    return certificate(ROOT, alternative=[kind._init_without_validation(name)])


def uris(*values: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(each) for each in values]


@pytest.mark.parametrize(
    ("field", "pattern", "name", "matches"),
    [
        ("dns", "*.example.com", "a.example.com", True),
        ("dns", "*.example.com", "A.EXAMPLE.com", True),
        ("dns", "*.Example.com", "a.example.com", True),
        ("dns", "*.example.com", "a.b.example.com", False),
        ("dns", "**.example.com", "a.b.example.com", True),
        ("dns", "*.example.com", "example.com", False),
        ("dns", "*.example.com", ".example.com", True),
        ("dns", "*.example.com", "a.example.com.evil.test", False),
        ("dns", "?.example.com", "..example.com", False),
        ("dns", "a.example.com", "axexample.com", False),
        ("dns", "*", "localhost", True),
        ("dns", "*", "a.b", False),
        ("dns", "**", "a.b", True),
        ("dns", "*.example.com", "a\n.example.com", True),
        ("dns", "example.com", "example.com\n", False),
        ("uri", "https://*.example.com/", "https://evil.test/.example.com/", False),
        ("uri", "HTTPS://Host/Path", "https://hOST/Path", True),
        ("uri", "https://host/Path", "https://host/path", False),
        ("uri", "urn:uuid:*", "urn:uuid:6e8bc430", True),
        ("spiffe", "spiffe://prod/ns/*/sa/web", "spiffe://prod/ns/a/sa/web", True),
        ("spiffe", "spiffe://prod/ns/*/sa/web", "spiffe://prod/ns/a/b/sa/web", False),
        ("spiffe", "spiffe://prod/**", "spiffe://prod/ns/a/sa/web", True),
        ("spiffe", "spiffe://prod/**", "spiffe://prod", False),
        ("spiffe", "spiffe://prod*/x", "spiffe://production.evil/x", True),
        ("email", "*@example.com", "Alice@EXAMPLE.com", True),
        ("email", "alice@example.com", "Alice@example.com", False),
        ("email", "*@example.com", '"x@evil.test"@example.com', False),
        ("email", "*@example.com", "alice@sub.example.com", False),
        ("cn", "*.bad", "very.very.bad", True),
        ("cn", "ALICE", "alice", False),
        ("cn", "[a]|.*", "a", False),
    ],
)
def test_a_glob_stays_within_a_part_of_the_name(
    field: RuleField, pattern: str, name: str, matches: bool
) -> None:
    assert applies(deny(field, pattern), showing(field, name)) is matches


def tokens(pattern: str) -> list[str]:
    """Split a glob into `**`, `*`, `?` and characters, for the reference below."""
    return re.findall(r"\*{2,}|.", pattern, re.DOTALL)


def slow_match(pattern: list[str], name: str, end: str) -> bool:
    """Match by the definition: every split of the name is tried."""

    @cache
    def rest(at: int, place: int) -> bool:
        if at == len(pattern):
            return place == len(name)
        token = pattern[at]
        here = name[place : place + 1]
        if token == "?":
            return here not in {"", end} and rest(at + 1, place + 1)
        if not token.startswith("*"):
            return here == token and rest(at + 1, place + 1)
        crosses = token != "*" or here != end
        return rest(at + 1, place) or (bool(here) and crosses and rest(at, place + 1))

    return rest(0, 0)


@settings(max_examples=2000)
@given(st.text("ab.*?", max_size=12), st.text("ab.", max_size=14))
def test_a_compiled_glob_is_what_its_definition_says(pattern: str, name: str) -> None:
    expected = slow_match(tokens(pattern), name, ".")

    assert (glob("dns", (pattern,)).fullmatch(name) is not None) is expected
    assert (glob("dns", ("b.b", pattern)).fullmatch(name) is not None) is (
        expected or name == "b.b"
    )


@pytest.mark.parametrize("star", ["*", "**"])
def test_a_hostile_name_takes_no_longer_than_a_blink(star: str) -> None:
    pattern = star.join("a" * 40) + "b"
    fullmatch = glob("dns", (pattern,)).fullmatch
    start = time.process_time()

    assert fullmatch("a" * MAX_NAME) is None

    assert time.process_time() - start < 1


def test_a_name_that_is_too_long_is_not_looked_at() -> None:
    subject = certificate(ROOT, alternative=[x509.DNSName("a" * (MAX_NAME + 1))])

    with pytest.raises(ValueError, match="more than 2048"):
        applies(deny("dns", "**"), subject)


def test_all_fields_of_a_rule_must_match_by_any_of_their_values() -> None:
    subject = certificate(ROOT, cn=["x", "alice"], ou=["ops", "dev"])

    assert applies(Rule(allow=True, fields=(("cn", ("bob", "al*")), ("ou", ("dev",)))), subject)
    assert not applies(Rule(allow=True, fields=(("cn", ("alice",)), ("ou", ("hr",)))), subject)


def test_a_rule_without_fields_applies_to_every_certificate() -> None:
    assert applies(Rule(allow=True), certificate(ROOT, cn=[]))


def test_a_field_that_a_certificate_lacks_matches_nothing() -> None:
    subject = certificate(ROOT, cn=[])

    for field in ("cn", "ou", "dns", "uri", "email", "spiffe"):
        assert not applies(deny(field, "**"), subject)
    assert not applies(deny("ip", "0.0.0.0/0", "::/0"), subject)


def test_a_common_name_is_no_dns_name() -> None:
    assert not applies(allow("dns", "host.test"), certificate(ROOT, cn=["host.test"]))


def test_addresses_match_networks_of_their_family() -> None:
    addresses = [x509.IPAddress(ipaddress.ip_address(each)) for each in ("10.1.2.3", "2001:db8::1")]
    subject = certificate(ROOT, alternative=addresses)

    assert applies(allow("ip", "10.1.0.0/16"), subject)
    assert applies(allow("ip", "192.0.2.0/24", "2001:db8::/32"), subject)
    assert not applies(allow("ip", "10.2.0.0/16", "2001:db9::/32"), subject)


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_digests_are_those_of_openssl(kind: str) -> None:
    subject = issue("client", kind=kind).certificate
    spki = subject.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    assert applies(allow("spki", "0" * 64, hashlib.sha256(spki).hexdigest()), subject)
    assert applies(allow("fingerprint", subject.fingerprint(hashes.SHA256()).hex()), subject)
    assert not applies(allow("spki", subject.fingerprint(hashes.SHA256()).hex()), subject)


def test_a_spiffe_id_lets_in_only_as_the_one_uri_of_a_leaf() -> None:
    ident = "spiffe://prod.test/web"
    usage = x509.KeyUsage(*[each == 5 for each in range(9)])  # keyCertSign alone
    leaf = certificate(ROOT, alternative=uris(ident))
    ambiguous = certificate(ROOT, alternative=uris(ident, "https://prod.test/"))
    authority = certificate(
        ROOT, alternative=uris(ident), extensions=[x509.BasicConstraints(True, None)]
    )
    signer = certificate(ROOT, alternative=uris(ident), extensions=[usage])

    assert applies(allow("spiffe", ident), leaf)
    for doubtful in (ambiguous, authority, signer):
        assert not applies(allow("spiffe", ident), doubtful)
        assert applies(deny("spiffe", ident), doubtful)


@pytest.mark.parametrize(
    "ident",
    ["spiffe://prod/../x", "spiffe://prod/./x", "spiffe://prod//x", "spiffe://prod/x/",
     "spiffe://prod:80/x", "spiffe://u@prod/x", "spiffe://prod/x?y", "spiffe://prod/%78",
     "spiffe:///x", "spiffe://pr\u006fd/x#f", f"spiffe://{'p' * 256}/x"],
)  # fmt: skip
def test_a_malformed_spiffe_id_lets_nobody_in(ident: str) -> None:
    subject = certificate(ROOT, alternative=uris(ident))

    assert not applies(allow("spiffe", "spiffe://**", "spiffe:**"), subject)
    assert applies(deny("spiffe", "spiffe:**"), subject)


def test_a_rule_is_shown_as_it_was_written() -> None:
    rule = Rule(allow=False, fields=(("cn", ("*.bad", "x")), ("ou", ("ops",))))

    assert CompiledRule(3, rule).text == "rule 3: deny cn=*.bad|x ou=ops"
    assert CompiledRule(1, Rule(allow=True)).text == "rule 1: allow any"
    assert len(CompiledRule(1, allow("cn", *["name"] * 99)).text) < 150
