"""Who may connect, as the text says it."""

from __future__ import annotations

import pytest
import yaml

from handfast import config
from handfast.config.clients import parse_digest, parse_pin
from handfast.errors import ConfigError

DIGEST = "0123456789abcdef" * 4


def parse(**auth: object) -> config.ClientAuth:
    entry = {
        "listen": ":0",
        "target": "tcp://h:1",
        "certificates": [{"chain": "c", "key": "k"}],
        "client-auth": {"mode": "require", "trusted-certs": ["ca.pem"], **auth},
    }
    return (
        config.parse(yaml.safe_dump({"listeners": [entry]}), base="/etc").listeners[0].client_auth
    )


def mistake(**auth: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(**auth)
    return str(caught.value)


def test_rules_keep_their_order_and_that_of_their_fields() -> None:
    auth = parse(
        rules=[
            {"deny": {"ou": ["ops", "dev"], "cn": "*.example.com"}},
            {"allow": {"ip": "10.0.0.0/8"}},
            {"allow": "any"},
        ]
    )

    # safe_dump sorts the keys, so `cn` comes first in the text.
    assert auth.rules == (
        config.Rule(allow=False, fields=(("cn", ("*.example.com",)), ("ou", ("ops", "dev")))),
        config.Rule(allow=True, fields=(("ip", ("10.0.0.0/8",)),)),
        config.Rule(allow=True),
    )


def test_revocation_lists_are_files_beside_the_configuration() -> None:
    assert parse(crls=["a.crl", "/b.crl"]).crls == ("/etc/a.crl", "/b.crl")


@pytest.mark.parametrize(
    ("rule", "claim"),
    [
        ({"allow": "all"}, "or the word any, got the text 'all'"),
        ({"allow": {}}, "has no fields; write the word any"),
        ({"allow": ["any"]}, "or the word any, got a list"),
        ({}, "rules[0].allow: is missing, and so is `deny`"),
        ({"allow": "any", "deny": "any"}, "cannot be used together with `allow`"),
        ({"allow": {"issuer": "x"}}, "unknown key; the keys are cn, ou, dns"),
        ({"allow": {"cn": []}}, "expected from 1 to 1000 in the list, got 0"),
        ({"allow": {"ou": 7}}, "expected text (put quotes around it), got the integer 7"),
        ({"allow": {"fingerprint": "AB:CD"}}, "expected a SHA-256 digest of 64 hex digits"),
        ({"allow": {"ip": "10.0.0.1/8"}}, "write 10.0.0.0/8"),
        ({"deny": {"dns": "b\u00fccher.example"}}, "as certificates hold them, in ASCII"),
        ({"allow": {"spiffe": "example.org/*"}}, "expected a SPIFFE id such as"),
    ],
)
def test_a_wrong_rule_is_named(rule: object, claim: str) -> None:
    assert claim in mistake(rules=[rule])


@pytest.mark.parametrize("key", ["rules", "crls"])
def test_what_mode_none_would_ignore_is_refused(key: str) -> None:
    value = [{"deny": "any"}] if key == "rules" else ["a.crl"]

    assert f"{key}: has no meaning with mode none" in mistake(mode="none", **{key: value})


def test_a_digest_may_be_written_as_any_tool_prints_it() -> None:
    colons = ":".join(DIGEST[i : i + 2] for i in range(0, 64, 2)).upper()
    pin = "sha256//ASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4mrze8="

    assert parse_digest(DIGEST.upper()) == parse_digest(colons) == DIGEST
    assert parse_pin(DIGEST) == parse_pin(pin) == DIGEST


@pytest.mark.parametrize(
    "text", ["sha256//", "sha256//AAAA", "sha256//!", "sha256//\u00e9", "ab:cd"]
)
def test_a_wrong_pin_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        parse_pin(text)
