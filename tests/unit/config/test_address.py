"""Addresses as people write them."""

from __future__ import annotations

import pytest

from handfast import config
from handfast.config.address import parse_network
from handfast.errors import ConfigError


@pytest.mark.parametrize(
    "text", ["0.0.0.0:443", "[::1]:443", ":8443", "localhost:0", "unix:/run/a.sock"]
)
def test_a_listen_address_prints_as_it_was_written(text: str) -> None:
    assert str(config.parse_listen(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "443", "::1:443", "[::1]", "[1.2.3.4]:1", "[::1:443", "h:65536", "h:-1", "h:", "unix:",
     "256.0.0.1:1", "a b:1", "-a:1", "h:\u0661", "unix:/a\0b", "unix:/" + "a" * 107, "tcp://h:1",
     "h:1\n", "a\n:1"],
)  # fmt: skip
def test_a_wrong_listen_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected|longer"):
        config.parse_listen(text)


@pytest.mark.parametrize("text", ["tcp://:80", "tcp://h:0", "h:80", "http://h:80", "tcp://h"])
def test_a_wrong_target_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        config.parse_target(text)


def test_credentials_in_a_target_are_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse_target("tcp://me:hunter22@db:5432")

    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "cidr"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("::1", "::1/128"),
        ("2001:DB8:0::/32", "2001:db8::/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_a_network_is_given_in_cidr_form(text: str, cidr: str) -> None:
    assert parse_network(text) == cidr


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "10.0.0.0/", "fe80::1%eth0", "h/8", "300.0.0.1"],
)
def test_a_wrong_network_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected an IP address, or a network"):
        parse_network(text)


def test_a_network_with_bits_after_its_prefix_is_refused_with_what_it_could_mean() -> None:
    with pytest.raises(ConfigError, match=r"write 10\.0\.0\.0/8"):
        parse_network("10.0.0.1/8")
