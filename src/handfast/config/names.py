"""Names that clients ask for and that certificates hold, in the spelling that TLS carries."""

from __future__ import annotations

import re
from typing import Final

from handfast.config.address import NAME, parse_ip
from handfast.config.document import shown
from handfast.errors import ConfigError

MAX_NAME: Final = 253  # octets of a host name in text (RFC 1035, section 2.3.4)
_LAST_IS_NUMERIC: Final = re.compile(r"(?:.*\.)?[0-9]+", re.DOTALL)


def parse_name(text: str) -> str:
    """Parse a host name: lower case, A-labels (RFC 5890), no final dot; raises ConfigError."""
    name = _ascii(text).lower().removesuffix(".")
    if len(name) > MAX_NAME or name.endswith(".") or not NAME.fullmatch(name):
        raise ConfigError(f"expected a host name such as www.example.com, got {shown(text)}")
    return name


def parse_sni(text: str) -> str:
    """Parse what SNI is compared with: a name, or `*.` and a name for exactly one label more.

    Raises ConfigError.
    """
    stars, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    if text == "*":
        raise ConfigError("a lone * is no name; leave `sni` out for a route that takes any")
    if "*" in name:
        message = "a wildcard is the whole first label, as in *.example.com"
        raise ConfigError(f"{message}; got {shown(text)}")
    if ":" in name or _LAST_IS_NUMERIC.fullmatch(name):
        raise ConfigError(f"clients never name an IP address in SNI; got {shown(text)}")
    return stars + parse_name(name)


def parse_server_name(text: str) -> str:
    """Parse what a target's certificate must be for: a host name or an IP address."""
    if ":" in text or _LAST_IS_NUMERIC.fullmatch(text):
        return parse_ip(text)
    return parse_name(text)


def _ascii(text: str) -> str:
    """Give A-labels for what is not ASCII; the codec is that of RFC 3490."""
    if text.isascii() or len(text) > MAX_NAME:
        return text
    try:
        return text.encode("idna").decode("ascii")
    except UnicodeError:
        raise ConfigError(f"{shown(text)} has no ASCII form (IDNA); write its A-labels") from None
