from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from handfast.tls.certificates import Credential
from handfast.tls.selection import Selection, names_of
from unit.policy.authority import certificate
from unit.tls.naming import ROOT, server

LABELS = ("a", "b", "example")
HOSTS = st.lists(st.sampled_from(LABELS), min_size=1, max_size=3).map(".".join)
NAMES = st.one_of(HOSTS, HOSTS.map(lambda host: f"*.{host}"))
CREDENTIALS = st.lists(
    st.tuples(st.frozensets(NAMES, max_size=3), st.sampled_from(["ecdsa", "rsa"])),
    min_size=1,
    max_size=5,
)


def test_an_exact_name_wins_over_a_wildcard_and_that_over_the_default() -> None:
    selection = Selection(
        [server("default.test"), server("*.example.com"), server("www.example.com")]
    )

    assert selection.choose("www.example.com") == (2,)
    assert selection.choose("mail.example.com") == (1,)
    assert selection.choose("other.test") == (0,)
    assert selection.choose("") == (0,)


@pytest.mark.parametrize(
    "name", ["example.com", "a.b.example.com", ".example.com.", "example", "xexample.com"]
)
def test_a_wildcard_stands_for_one_label(name: str) -> None:
    selection = Selection([server("default.test"), server("*.example.com")])

    assert selection.choose(name) == (0,)


def test_keys_of_both_kinds_stand_side_by_side() -> None:
    selection = Selection(
        [
            server("a.test"),
            server("b.test"),
            server("b.test", kind="rsa"),
            server("a.test", kind="rsa"),
        ]
    )

    assert selection.choose("a.test") == (0, 3)
    assert selection.choose("b.test") == (1, 2)
    assert selection.choose("c.test") == selection.default == (0, 3)


def test_of_two_keys_of_a_kind_the_first_is_shown() -> None:
    selection = Selection([server("a.test"), server("a.test"), server("a.test", kind="rsa")])

    assert selection.choose("a.test") == (0, 2)


def test_certificates_for_some_of_the_same_names_share_those() -> None:
    selection = Selection([server("a.test", "b.test"), server("b.test", "c.test", kind="rsa")])

    assert selection.choose("a.test") == (0,)
    assert selection.choose("b.test") == (0, 1)
    assert selection.choose("c.test") == (1,)
    assert selection.default == (0,)


def test_a_certificate_without_names_can_be_the_default_only() -> None:
    selection = Selection([server(), server("a.test")])

    assert selection.choose("server") == (0,)
    assert selection.choices() == {(0,), (1,)}


def test_names_are_of_the_alternative_names_in_lower_case() -> None:
    alternative = [x509.DNSName("WWW.Example.COM"), x509.RFC822Name("me@example.com")]
    leaf = certificate(ROOT, cn=("cn.example.com",), alternative=alternative)

    assert names_of(leaf) == {"www.example.com"}


def reference(credentials: list[Credential], name: str) -> tuple[int, ...]:
    """The same by the words of the specification, in no hurry."""
    names = [names_of(each.chain[0]) for each in credentials]
    wildcard = "*." + name.partition(".")[2]
    exact = [place for place, each in enumerate(names) if name in each]
    wild = [place for place, each in enumerate(names) if wildcard in each]
    default = [0, *(place for place, each in enumerate(names) if each == names[0])]
    seen, chosen = set(), []
    for place in exact or wild or default:
        kind = type(credentials[place].key).__name__
        if kind not in seen:
            seen.add(kind)
            chosen.append(place)
    return tuple(chosen)


CACHE: dict[tuple[frozenset[str], str], Credential] = {}


@given(wanted=CREDENTIALS, name=st.one_of(HOSTS, st.just(""), st.text(max_size=5)))
def test_the_choice_follows_the_rules(wanted: list[tuple[frozenset[str], str]], name: str) -> None:
    for names, kind in wanted:
        if (names, kind) not in CACHE:
            CACHE[names, kind] = server(*names, kind=kind)
    credentials = [CACHE[each] for each in wanted]
    selection = Selection(credentials)

    chosen = selection.choose(name)

    assert chosen == reference(credentials, name)
    assert chosen in selection.choices()
    assert 1 <= len(chosen) <= 2
