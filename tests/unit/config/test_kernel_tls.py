"""`kernel-tls` of a listener."""

from __future__ import annotations

import pytest

from handfast import config
from handfast.errors import ConfigError

LISTENER = """
listeners:
  - listen: {listen}
    target: tcp://127.0.0.1:1
    certificates: [{{chain: chain.pem, key: key.pem}}]
    {more}
"""


def parse(more: str, listen: str = "127.0.0.1:443") -> config.KernelTls:
    text = LISTENER.format(listen=listen, more=more.replace("\n", "\n    "))
    (listener,) = config.parse(text).listeners
    return listener.kernel_tls


@pytest.mark.parametrize(
    ("word", "mode"),
    [("off", "off"), ("auto", "auto"), ("on", "on"), ("'on'", "on"), ("true", "on"), ("NO", "off")],
)
def test_a_mode_may_be_a_word_or_what_yaml_makes_of_it(word: str, mode: str) -> None:
    assert parse(f"kernel-tls: {word}").mode == mode


def test_without_the_key_sessions_stay_in_user_space() -> None:
    assert parse("max-connections: 1") == config.KernelTls(mode="off", after=0)


def test_a_connection_may_have_to_carry_something_first() -> None:
    assert parse("kernel-tls: auto\nkernel-tls-after: 65536").after == 65536


@pytest.mark.parametrize(
    ("more", "claim"),
    [
        ("kernel-tls: maybe", "expected one of off, auto, on, got the text 'maybe'"),
        ("kernel-tls: 1", "expected one of off, auto, on, got the integer 1"),
        ("kernel-tls: auto\nkernel-tls-after: -1", "expected an integer from 0 to"),
        ("kernel-tls-after: 5", "has no meaning while `kernel-tls` is off"),
        ("kernel-tls: off\nkernel-tls-after: 5", "has no meaning while `kernel-tls` is off"),
    ],
)
def test_what_is_wrong_is_named(more: str, claim: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(more)

    assert claim in str(caught.value)
    assert "kernel-tls" in str(caught.value)


def test_a_unix_socket_is_refused() -> None:
    with pytest.raises(ConfigError, match="is for TCP, and this listener is a Unix socket"):
        parse("kernel-tls: auto", listen="unix:/run/handfast.sock")
