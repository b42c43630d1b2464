"""What a listener negotiates, as the text says it."""

from __future__ import annotations

import pytest

from handfast import config
from handfast.config.negotiation import SUITES
from handfast.errors import ConfigError
from handfast.tls import keys

TEXT = """\
listeners:
- listen: ":0"
  target: tcp://h:1
  certificates: [{chain: c, key: k}]
  tls: %s
"""
AES = "TLS_AES_128_GCM_SHA256"
ECDHE = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"


def parse(tls: str) -> config.TlsPolicy:
    return config.parse(TEXT % tls).listeners[0].tls


def test_the_suites_are_those_of_the_record_layer() -> None:
    versions = {keys.TLS12: "1.2", keys.TLS13: "1.3"}

    assert {each.name: versions[each.version] for each in keys.SUITES.values()} == SUITES


def test_versions_may_be_written_bare_and_in_any_order() -> None:
    assert parse("{versions: [1.3, '1.2']}").versions == ("1.2", "1.3")


def test_the_order_of_suites_is_kept() -> None:
    assert parse(f"{{ciphersuites: [{ECDHE}, {AES}]}}").ciphersuites == (ECDHE, AES)


def test_post_quantum_leaves_tls_1_2_out() -> None:
    assert parse("{require-post-quantum: true}") == config.TlsPolicy(
        versions=("1.3",), require_post_quantum=True
    )
    assert parse("{require-post-quantum: false}") == config.TlsPolicy()


@pytest.mark.parametrize(
    ("tls", "claim"),
    [
        ("{versions: [1.1]}", "expected one of 1.2, 1.3, got the number 1.1"),
        ("{versions: []}", "expected from 1 to 1000 in the list, got 0"),
        ("{ciphersuites: [RC4]}", f"expected one of {AES}, "),
        ("{versions: [1.2, 1.3], require-post-quantum: true}", "tls.versions: TLS 1.2 has no"),
        (f"{{ciphersuites: [{AES}]}}", "none is of TLS 1.2"),
        (f"{{versions: [1.3], ciphersuites: [{AES}, {ECDHE}]}}", "ciphersuites[1]: TLS_ECDHE"),
        ("{require-post-quantum: 1}", "expected true or false, got the integer 1"),
    ],
)
def test_a_wrong_policy_is_named(tls: str, claim: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(tls)

    assert claim in str(caught.value)
