"""Hostile text: it is a Config or a ConfigError, nothing else."""

from __future__ import annotations

import contextlib

import yaml
from hypothesis import given
from hypothesis import strategies as st

from handfast import config
from handfast.config.clients import CLIENT_AUTH, RULE, WHO
from handfast.config.dialects import FLAT, FULL, LIMITS
from handfast.config.listeners import CERTIFICATE, LISTENER
from handfast.config.names import parse_name, parse_server_name, parse_sni
from handfast.config.negotiation import SUITES, TLS
from handfast.config.services import ROUTE, TARGET, TARGET_TLS
from handfast.errors import ConfigError

SHAPES = (FLAT, FULL, LISTENER, CERTIFICATE, CLIENT_AUTH, RULE, WHO, LIMITS, TLS, ROUTE, TARGET,
          TARGET_TLS)  # fmt: skip
KEYS = sorted({key for shape in SHAPES for key in shape.fields})
PIECES = st.sampled_from(
    [*KEYS, ": ", "\n", "\n- ", "  ", "[", "]", "{", "}", ", ", "*a", "&a ", "!t ", "'", '"', "\\U",
     "%YAML 1.1", "---", "...", "|", ">", "?", "1", "tcp://h:1", ":443", "unix:/s", "\udc80", "\0"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["1.2", "1.3", *SUITES, "any", "none", "v2", "require", "*.a.example", "b\u00fccher.example",
     "10.0.0.0/8", "::1", "tcp://h:1", ":443", "unix:/s", "sha256//","spiffe://x", "h2",
     "ab:" * 31]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), WORDS
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
    ),
)


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


@given(st.text())
def test_any_text_is_a_name_or_a_config_error(text: str) -> None:
    for parse in (parse_name, parse_sni, parse_server_name):
        with contextlib.suppress(ConfigError):
            assert parse(parse(text)) == parse(text)
