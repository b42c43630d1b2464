"""Who may connect: the certificates that clients show, and the rules over them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Final, get_args

from handfast.config.document import Kind, Value, shown
from handfast.config.scalars import AnyParser, by, choice, expected, file, network, text
from handfast.config.schema import ClientAuth, ClientAuthMode, Rule, RuleField
from handfast.config.shape import (
    Shape,
    either,
    excludes,
    keywords,
    list_of,
    missing,
    one_or_many,
    required,
)
from handfast.errors import ConfigError, Problem

_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}|[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){31}")
_PIN: Final = "sha256//"  # how curl and others write the digest of a public key


def parse_digest(content: str) -> str:
    """Parse a SHA-256 digest in hex, with or without colons, to 64 lower-case digits."""
    if not _HEX.fullmatch(content):
        raise ConfigError(f"expected a SHA-256 digest of 64 hex digits, got {shown(content)}")
    return content.replace(":", "").lower()


def parse_pin(content: str) -> str:
    """Parse a digest in hex, or in Base64 after `sha256//`, to 64 lower-case hex digits."""
    if not content.startswith(_PIN):
        return parse_digest(content)
    try:
        return parse_digest(base64.b64decode(content.removeprefix(_PIN), validate=True).hex())
    except (binascii.Error, ValueError, ConfigError):
        message = f"expected {_PIN} and 32 bytes in Base64, got {shown(content)}"
        raise ConfigError(message) from None


def parse_ascii(content: str) -> str:
    """Parse a glob over names that certificates hold in ASCII (RFC 5280, section 4.2.1.6).

    Another would match nothing, and a `deny` would let in who it was meant for.
    """
    if not content.isascii():
        message = "write names as certificates hold them, in ASCII: xn--... or percent-encoded"
        raise ConfigError(f"{message}; got {shown(content)}")
    return content


def parse_spiffe(content: str) -> str:
    """Parse a glob over SPIFFE ids."""
    if not content.startswith("spiffe://"):
        message = f"expected a SPIFFE id such as spiffe://example.org/*, got {shown(content)}"
        raise ConfigError(message)
    return parse_ascii(content)


_NAME: Final = by(parse_ascii, "a name, in which * and ? stand for others")
_DIGEST: Final = "a SHA-256 digest in hex"
_VALUES: Final[dict[RuleField, AnyParser]] = {
    "cn": text,
    "ou": text,
    "dns": _NAME,
    "uri": _NAME,
    "ip": network,
    "email": _NAME,
    "spiffe": by(parse_spiffe, "a SPIFFE id such as spiffe://example.org/*"),
    "spki": by(parse_pin, _DIGEST),
    "fingerprint": by(parse_digest, _DIGEST),
}
WHO: Final = Shape(fields={field: one_or_many(parser) for field, parser in _VALUES.items()})


def _who(value: Value) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Take the fields of a rule in their order, or the word `any` for none."""
    if value.kind is Kind.TEXT and value.text.lower() == "any":
        return ()
    if value.kind is Kind.MAPPING and not value.entries:
        raise ConfigError(value.problem("has no fields; write the word any for every certificate"))
    if value.kind is not Kind.MAPPING:
        raise expected(value, "fields such as {cn: '*.example.com'}, or the word any")
    return tuple(WHO.read(value).items())


RULE: Final = Shape(
    fields={"allow": _who, "deny": _who},
    rules=(either("allow", "deny", "`allow: {...}` or `deny: {...}`"), excludes("allow", "deny")),
)


def _rule(value: Value) -> Rule:
    ((verb, fields),) = RULE.read(value).items()
    return Rule(allow=verb == "allow", fields=fields)


def _mode_fits(value: Value) -> Iterable[Problem]:
    """Demand what a mode needs, and refuse what it would ignore."""
    mode = value.entries.get("mode")
    word = mode.text.lower() if mode else ""
    if word in {"optional", "require"} and "trusted-certs" not in value.entries:
        message = f"is missing; mode {word} needs the certificates to trust"
        yield missing(value, "trusted-certs", message)
    for key in ("crls", "rules"):
        if word == "none" and key in value.entries:
            message = "has no meaning with mode none; write mode optional or require"
            yield value.entries[key].problem(message)


CLIENT_AUTH: Final = Shape(
    fields={
        "mode": choice(*get_args(ClientAuthMode)),
        "trusted-certs": list_of(file),
        "crls": list_of(file),
        "rules": list_of(_rule),
    },
    rules=(required("mode", "none, optional or require"), _mode_fits),
)


def client_auth(value: Value) -> ClientAuth:
    """Take the key `client-auth` of a listener."""
    return ClientAuth(**keywords(CLIENT_AUTH.read(value)))
