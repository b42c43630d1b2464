"""Addresses as people write them."""

from __future__ import annotations

import pytest

from handfast import config
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
