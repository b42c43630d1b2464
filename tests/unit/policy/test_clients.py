"""Who may connect: validity, revocation, trust, rules, and that nothing gets past by breaking."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from handfast.config import ClientAuthMode, Rule, RuleField
from handfast.policy.clients import ClientPolicy, Clients, Decision
from handfast.tls.alerts import Alert
from harness.pki import DAY, NOW, Identity, issue
from unit.policy.authority import certificate, crl, der

ROOT = issue("root", ca=True)
INTERMEDIATE = issue("intermediate", ROOT, ca=True)
ALICE = issue("alice", INTERMEDIATE, client=True)
FULL = der(ALICE.certificate, INTERMEDIATE.certificate, ROOT.certificate)
STRANGER = issue("other root", ca=True)
ALLOW_ALICE = Rule(allow=True, fields=(("cn", ("alice",)),))
DENY_ALL = Rule(allow=False)


def policy(
    *rules: Rule,
    mode: ClientAuthMode = "require",
    anchors: Iterable[Identity] = (ROOT,),
    crls: Iterable[x509.CertificateRevocationList] = (),
) -> ClientPolicy:
    return ClientPolicy(
        mode,
        rules,
        tuple(each.public_bytes(Encoding.DER) for each in crls),
        der(*(each.certificate for each in anchors)),
    )


def decide(asked: ClientPolicy, chain: tuple[bytes, ...] = FULL, days: int = 0) -> Decision:
    return Clients(asked).decide(chain, NOW + days * DAY)


def assert_refused(decision: Decision, reason: str, alert: Alert) -> None:
    assert (decision.allowed, decision.reason, decision.alert) == (False, reason, alert)


def test_a_missing_certificate_matters_where_one_is_required() -> None:
    required = decide(policy(mode="require"), ())

    assert_refused(required, "no_certificate", Alert.CERTIFICATE_REQUIRED)
    assert decide(policy(DENY_ALL, mode="optional"), ()).allowed
    assert decide(policy(mode="none"), ()).allowed


def test_a_listener_that_no_longer_asks_does_not_look() -> None:
    assert decide(policy(DENY_ALL, mode="none"), (b"anything",)).reason == "not_asked"


def test_without_rules_trust_is_enough() -> None:
    decision = decide(policy())

    assert (decision.allowed, decision.reason, decision.rule) == (True, "no_rules", None)


def test_the_first_rule_that_applies_decides() -> None:
    guests = Rule(allow=False, fields=(("ou", ("guests",)),))

    allowed = decide(policy(guests, ALLOW_ALICE, DENY_ALL))
    denied = decide(policy(guests, DENY_ALL, ALLOW_ALICE))

    assert (allowed.allowed, allowed.rule, allowed.text) == (True, 2, "rule 2: allow cn=alice")
    assert_refused(denied, "rule_denied", Alert.ACCESS_DENIED)
    assert (denied.rule, denied.text) == (2, "rule 2: deny any")


def test_where_there_are_rules_and_none_applies_the_client_stays_out() -> None:
    decision = decide(policy(Rule(allow=False, fields=(("cn", ("bob",)),))))

    assert_refused(decision, "no_rule", Alert.ACCESS_DENIED)
    assert decision.rule is None


def test_rules_are_about_the_leaf_alone() -> None:
    roots = Rule(allow=True, fields=(("cn", ("root", "intermediate")),))

    assert decide(policy(roots)).reason == "no_rule"


def test_an_optional_certificate_that_is_shown_is_judged() -> None:
    assert decide(policy(DENY_ALL, mode="optional")).reason == "rule_denied"


def test_a_certificate_is_refused_outside_its_time() -> None:
    assert_refused(decide(policy(), days=31), "certificate_expired", Alert.CERTIFICATE_EXPIRED)
    assert_refused(decide(policy(), days=-2), "certificate_not_yet_valid", Alert.BAD_CERTIFICATE)


def test_an_intermediate_that_expired_is_refused_too() -> None:
    short = issue("short", ROOT, ca=True, not_after=NOW + DAY)
    client = issue("client", short, client=True)
    chain = der(*client.chain, ROOT.certificate)

    assert decide(policy(), chain).allowed
    decision = decide(policy(), chain, days=2)

    assert_refused(decision, "certificate_expired", Alert.CERTIFICATE_EXPIRED)
    assert "CN=short: expired on" in decision.text


def test_a_revoked_certificate_is_refused_before_any_rule() -> None:
    revoked = policy(
        ALLOW_ALICE, anchors=[ROOT, INTERMEDIATE], crls=[crl(INTERMEDIATE, ALICE.certificate)]
    )

    assert_refused(decide(revoked), "certificate_revoked", Alert.CERTIFICATE_REVOKED)
    assert_refused(decide(revoked, FULL[:1]), "certificate_revoked", Alert.CERTIFICATE_REVOKED)


def test_what_a_revoked_intermediate_issued_is_refused() -> None:
    decision = decide(policy(crls=[crl(ROOT, INTERMEDIATE.certificate)]))

    assert_refused(decision, "certificate_revoked", Alert.CERTIFICATE_REVOKED)
    assert "CN=intermediate was revoked" in decision.text


def test_after_its_end_a_list_lets_nobody_in() -> None:
    asked = policy(crls=[crl(ROOT)])

    assert decide(asked).allowed
    assert_refused(decide(asked, days=2), "crl_expired", Alert.CERTIFICATE_UNKNOWN)


def test_a_chain_of_which_the_anchor_was_taken_away_is_refused() -> None:
    assert_refused(decide(policy(anchors=[STRANGER])), "untrusted", Alert.UNKNOWN_CA)
    assert_refused(decide(policy(anchors=[])), "untrusted", Alert.UNKNOWN_CA)


@pytest.mark.parametrize("anchor", [ROOT, INTERMEDIATE, ALICE])
def test_any_certificate_of_the_chain_may_be_the_anchor(anchor: Identity) -> None:
    assert decide(policy(anchors=[STRANGER, anchor])).allowed


def test_the_issuer_of_a_certificate_in_the_chain_may_be_the_anchor() -> None:
    assert decide(policy(), FULL[:2]).allowed
    assert decide(policy(anchors=[INTERMEDIATE]), FULL[:1]).allowed


def test_a_leaf_whose_intermediate_is_unknown_needs_to_be_vouched_for() -> None:
    clients = Clients(policy())

    assert clients.decide(FULL[:1], NOW).reason == "untrusted"
    assert clients.decide(FULL[:1], NOW, trusted=True).allowed


def test_a_namesake_of_the_anchor_is_not_the_anchor() -> None:
    namesake = issue("intermediate", STRANGER, ca=True)

    assert decide(policy(anchors=[namesake]), FULL[:1]).reason == "untrusted"


def test_a_pinned_leaf_vouches_for_itself_alone() -> None:
    pinned = issue("pinned", client=True)
    issued = issue("issued", pinned, client=True)

    assert decide(policy(anchors=[pinned]), der(pinned.certificate)).allowed
    assert decide(policy(anchors=[pinned]), der(issued.certificate)).reason == "untrusted"


def test_an_anchor_that_expired_vouches_for_nobody() -> None:
    old = issue("old", ca=True, not_before=NOW - 9 * DAY, not_after=NOW - DAY)
    client = issue("client", old, client=True)

    assert decide(policy(anchors=[old]), der(client.certificate)).reason == "untrusted"


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_what_cannot_be_read_is_refused(damaged: int) -> None:
    chain = list(FULL)
    chain[damaged] = b"0\x03\x02\x01\x01"

    decision = decide(policy(ALLOW_ALICE), tuple(chain))

    assert_refused(decision, "malformed_certificate", Alert.BAD_CERTIFICATE)


def test_what_the_parser_only_warns_of_is_taken() -> None:
    version = b"\xa0\x03\x02\x01\x02"
    (data,) = der(certificate(ROOT, serial=1))
    numbered_0 = data.replace(version + b"\x02\x01\x01", version + b"\x02\x01\x00")

    assert numbered_0 != data
    assert Clients(policy()).decide((numbered_0,), NOW, trusted=True).allowed


FIELDS = st.sampled_from(get_args(RuleField))
GLOBS = st.text(st.sampled_from("ab.*?@/[]()|\\:^$\n\u212a\ud800")) | st.text()
NETWORKS = st.ip_addresses().map(str)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    fields = draw(st.lists(FIELDS, max_size=3))
    values = [
        tuple(draw(st.lists(NETWORKS if field == "ip" else GLOBS, max_size=3))) for field in fields
    ]
    return Rule(allow=draw(st.booleans()), fields=tuple(zip(fields, values, strict=True)))


RICH = certificate(
    ROOT,
    cn=["a", "b"],
    ou=["a"],
    alternative=[
        x509.DNSName("a.b"),
        x509.RFC822Name("a@b"),
        x509.UniformResourceIdentifier("spiffe://a/b"),
        x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x0c\x01a"),
        x509.DirectoryName(ROOT.certificate.subject),
    ],
    extensions=[x509.BasicConstraints(ca=False, path_length=None)],
).public_bytes(Encoding.DER)
EVERY_FIELD = tuple(Rule(allow=False, fields=((f, ()),)) for f in get_args(RuleField))


@given(st.lists(rules(), max_size=5), st.lists(st.binary(), max_size=3), st.booleans())
def test_any_rules_and_any_bytes_give_a_decision(
    given_rules: list[Rule], chain: list[bytes], trusted: bool
) -> None:
    clients = Clients(policy(*given_rules))

    assert clients.decide((RICH, *chain), NOW, trusted=trusted).text
    assert clients.decide(tuple(chain), NOW, trusted=trusted).allowed is False


@given(
    st.lists(
        st.tuples(st.integers(0, len(RICH) - 1), st.integers(0, 255), st.booleans()),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_a_damaged_certificate_gives_a_decision(damage: list[tuple[int, int, bool]]) -> None:
    """The parser is lazy: damage comes out when a field is asked for."""
    data = bytearray(RICH)
    for place, value, cut in damage:
        data[place % len(data)] = value
        if cut:
            del data[place % len(data)]
    clients = Clients(policy(*EVERY_FIELD, crls=[crl(ROOT)]))

    for trusted in (True, False):
        assert not clients.decide((bytes(data),), NOW, trusted=trusted).allowed
