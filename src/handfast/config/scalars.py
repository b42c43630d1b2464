"""Parsers of single values: each takes a Value and gives what it stands for, or ConfigError."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from handfast.config.address import parse_listen, parse_network, parse_target, parse_unix
from handfast.config.document import UNPRINTABLE, Kind, Value, shown
from handfast.config.schema import JOURNALD, SYSLOG, Address, Secret, TargetAddress
from handfast.errors import ConfigError

T = TypeVar("T")
Parser = Callable[[Value], T]
AnyParser = Callable[[Value], Any]

UNITS: Final = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}  # in milliseconds
MAX_COUNT: Final = 10_000_000
LONGEST: Final = 7 * 24 * UNITS["h"]
_DURATION: Final = re.compile(r"([0-9]{1,12})(ms|s|m|h)")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHOWN: Final = {Kind.BOOLEAN, Kind.INTEGER, Kind.NUMBER, Kind.TEXT}


def expected(value: Value, what: str, *, secret: bool = False) -> ConfigError:
    """Make the error for a value of the wrong kind or range; a secret's text is left out."""
    got = value.kind.value
    if value.kind in _SHOWN and not secret:
        got += f" {shown(value.text) if value.kind is Kind.TEXT else value.text[:60]}"
    return ConfigError(value.problem(f"expected {what}, got {got}"))


def text(value: Value, what: str = "text", *, secret: bool = False) -> str:
    """Take text that is not empty and has no control characters."""
    if value.kind in _SHOWN and value.kind is not Kind.TEXT:
        what += " (put quotes around it)"
    if value.kind is not Kind.TEXT or not value.text:
        raise expected(value, what, secret=secret)
    if UNPRINTABLE.search(value.text):
        message = f"expected {what}, got a line break, a control character or bytes not in UTF-8"
        raise ConfigError(value.problem(message))
    return value.text


def password(value: Value) -> Secret:
    """Take a password; no error shows it."""
    return Secret(text(value, "a password as text", secret=True))


def variable(value: Value) -> str:
    """Take the name of an environment variable; it may be a password in the wrong place."""
    what = "the name of an environment variable"
    name = text(value, what, secret=True)
    if not _VARIABLE.fullmatch(name):
        raise ConfigError(value.problem(f"expected {what}: letters, digits and _"))
    return name


def file(value: Value) -> str:
    """Take a file name, joined to the directory of the configuration."""
    return os.path.join(value.base, text(value, "a file name"))  # noqa: PTH118  text in, text out


def output(value: Value) -> str | None:
    """Take a file name, `-` for standard output (None), or `syslog` or `journald` as they are."""
    if value.text in {SYSLOG, JOURNALD}:
        return value.text
    return None if value.text == "-" else file(value)


def boolean(value: Value) -> bool:
    """Take true or false; YAML 1.1 has yes, no, on and off for them, too."""
    if value.kind is not Kind.BOOLEAN:
        raise expected(value, "true or false")
    return is_true(value)


def is_true(value: Value | None) -> bool:
    """Tell whether a key is there and says true."""
    return (
        value is not None
        and value.kind is Kind.BOOLEAN
        and value.text.lower() in {"true", "yes", "on"}
    )


def integer(lowest: int, highest: int) -> Parser[int]:
    """Take a decimal integer in a range, both ends included."""

    def parse(value: Value) -> int:
        if value.kind is not Kind.INTEGER or not lowest <= int(value.text) <= highest:
            raise expected(value, f"an integer from {lowest} to {highest}")
        return int(value.text)

    return parse


def duration(lowest: int) -> Parser[float]:
    """Take milliseconds as an integer, or text with a unit; gives seconds. `lowest` is in ms."""

    def parse(value: Value) -> float:
        milliseconds = _milliseconds(value)
        if not lowest <= milliseconds <= LONGEST:
            raise expected(value, f"a time from {lowest}ms to {LONGEST // UNITS['h']}h")
        return milliseconds / 1000

    return parse


def _milliseconds(value: Value) -> int:
    if value.kind is Kind.INTEGER:
        return int(value.text)
    match = _DURATION.fullmatch(value.text)
    if value.kind is not Kind.TEXT or match is None:
        raise expected(value, "milliseconds, or text with a unit such as 500ms, 10s, 5m, 2h")
    return int(match[1]) * UNITS[match[2]]


def choice(*names: str) -> Parser[str]:
    """Take one of a few words, in any case."""
    words = {name.lower(): name for name in names}

    def parse(value: Value) -> str:
        # A bare 1.2, of TLS, is a number to YAML.
        word = words.get(value.text.lower()) if value.kind in {Kind.TEXT, Kind.NUMBER} else None
        if word is None:
            raise expected(value, f"one of {', '.join(names)}")
        return word

    return parse


def by(parse_text: Callable[[str], T], what: str) -> Parser[T]:
    """Take text that a function parses; its errors get the value's path and line."""

    def parse(value: Value) -> T:
        content = text(value, what)
        try:
            return parse_text(content)
        except ConfigError as error:
            raise ConfigError(*(value.problem(p.message) for p in error.problems)) from None

    return parse


def address(parse_text: Callable[[str], Address], what: str) -> Parser[Address]:
    """Take an address; the path of a Unix socket is joined to the directory of the file."""

    def parse(value: Value) -> Address:
        def from_base(content: str) -> Address:
            if content.startswith("unix:"):
                return parse_unix(content, value.base)
            return parse_text(content)

        return by(from_base, what)(value)

    return parse


def target(value: Value) -> TargetAddress:
    """Take where to forward to; the path of a socket is joined to the directory of the file."""
    what = "a target such as tcp://127.0.0.1:80, unix:/path or handoff:/path"
    return by(partial(parse_target, base=value.base), what)(value)


listen: Final = address(parse_listen, "an address such as 0.0.0.0:443, '[::]:443' or unix:/path")
network: Final = by(parse_network, "an IP address, or a network such as 10.0.0.0/8")
count: Final = integer(0, MAX_COUNT)


def protocol(value: Value) -> str:
    """Take an ALPN protocol name (RFC 7301): 1 to 255 bytes, here ASCII."""
    name = text(value, "an ALPN protocol name")
    if not name.isascii() or len(name) > 255:
        raise expected(value, "an ALPN protocol name of 1 to 255 ASCII characters")
    return name
