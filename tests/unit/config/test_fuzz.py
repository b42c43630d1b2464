"""Hostile text: it is a Config or a ConfigError, nothing else."""

from __future__ import annotations

import contextlib

import yaml
from hypothesis import given
from hypothesis import strategies as st

from handfast import config
from handfast.config.dialects import CERTIFICATE, CLIENT_AUTH, FLAT, FULL, LISTENER
from handfast.errors import ConfigError

KEYS = sorted({k for s in (FLAT, FULL, LISTENER, CERTIFICATE, CLIENT_AUTH) for k in s.fields})
PIECES = st.sampled_from(
    [*KEYS, ": ", "\n", "\n- ", "  ", "[", "]", "{", "}", ", ", "*a", "&a ", "!t ", "'", '"', "\\U",
     "%YAML 1.1", "---", "...", "|", ">", "?", "1", "tcp://h:1", ":443", "unix:/s", "\udc80", "\0"]
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
    ),
)
NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)
TIMES = st.integers(1, 7 * 24 * 3_600_000)


def survives(text: str) -> None:
    with contextlib.suppress(ConfigError):
        config.effective(config.parse(text))


@given(st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join)))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    survives(text)


@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=8))
def test_any_tree_is_a_config_or_a_config_error(tree: object) -> None:
    survives(yaml.safe_dump(tree))


@given(st.text())
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    for parse in (config.parse_listen, config.parse_target):
        with contextlib.suppress(ConfigError):
            assert str(parse(text))


@given(NAMES, NAMES, NAMES, TIMES, st.integers(0, 9), st.booleans())
def test_a_valid_configuration_survives_effective(
    name: str, chain: str, log: str, time: int, workers: int, trusts: bool
) -> None:
    listener = {
        "name": name,
        "listen": "[::1]:443",
        "target": "tcp://db.internal:5432",
        "certificates": [{"chain": chain, "key": log, "key-password-file": name}],
        "client-auth": {"mode": "optional", "trusted-certs": [chain]}
        if trusts
        else {"mode": "none"},
        "alpn": ["h2"],
    }
    tree = {"nworkers": workers, "logfile": log, "idle-timeout": time, "listeners": [listener]}

    parsed = config.parse(yaml.safe_dump(tree), cores=3)

    assert config.parse(config.effective(parsed)) == parsed
