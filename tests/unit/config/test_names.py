"""Names as people write them, in the spelling that TLS carries."""

from __future__ import annotations

import pytest

from handfast.config.names import parse_name, parse_server_name, parse_sni
from handfast.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("WWW.Example.com.", "www.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.BÜCHER.example", "*.xn--bcher-kva.example"),
        ("my_service", "my_service"),
    ],
)
def test_a_name_is_lower_case_in_a_labels_and_without_its_final_dot(text: str, name: str) -> None:
    assert parse_sni(text) == name


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("*", "leave `sni` out"),
        ("a.*.example", "whole first label"),
        ("w*.example", "whole first label"),
        ("*.*.example", "whole first label"),
        ("192.0.2.1", "never name an IP address"),
        ("::1", "never name an IP address"),
        ("*.", "expected a host name"),
        ("a..", "expected a host name"),
        ("a..b", "expected a host name"),
        ("-a.example", "expected a host name"),
        ("a b", "expected a host name"),
        ("a." * 127 + "a", "expected a host name"),
        ("\u00ad" * 300 + "a.example", "expected a host name"),
        ("\u00fc" * 64 + ".example", "no ASCII form"),
        ("\uff0a.example", "expected a host name"),
    ],
)
def test_a_wrong_name_is_refused(text: str, claim: str) -> None:
    with pytest.raises(ConfigError, match=claim):
        parse_sni(text)


def test_a_wildcard_is_no_name_to_verify() -> None:
    with pytest.raises(ConfigError, match="expected a host name"):
        parse_name("*.example.com")


def test_a_target_may_be_verified_by_address() -> None:
    assert parse_server_name("2001:DB8::1") == "2001:db8::1"
    assert parse_server_name("DB.internal.") == "db.internal"
    with pytest.raises(ConfigError, match="IP address"):
        parse_server_name("300.0.0.1")
