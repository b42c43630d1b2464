"""Whether a server's certificate is for the name that was asked for (RFC 9525).

Only the subjectAltName counts, never the common name. An IP address has to be there as one. A DNS
name matches as a whole and without regard to case; in a certificate `*` may stand for exactly one
label, the first, if two more follow it.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - the codec, which could not be loaded any more in a chroot
import ipaddress
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from handfast.errors import ConfigError

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_SHOWN: Final = 5
"""Names of a wrong certificate that an error quotes."""


class ServerName(msgspec.Struct, frozen=True):
    """What a server has to prove to be: a DNS name in its ASCII form, or an IP address."""

    dns: str
    address: IPAddress | None = None

    @property
    def sni(self) -> str:
        """The name to send; an IP address is not sent (RFC 6066, section 3)."""
        return self.dns

    def __str__(self) -> str:
        return str(self.address) if self.address else self.dns


def server_name(text: str) -> ServerName:
    """Read a name or an address; ConfigError for what is neither."""
    try:
        return ServerName("", ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        pass  # a name, then
    try:
        dns = text.removesuffix(".").encode("idna").decode("ascii").lower()
    except UnicodeError:
        dns = ""
    if not dns:
        raise ConfigError(f"{text!r} is neither a host name nor an IP address; set server-name")
    return ServerName(dns)


def mismatch(leaf: bytes, name: ServerName) -> str:
    """Tell why a certificate (DER) is not for this name; empty when it is."""
    try:
        certificate = x509.load_der_x509_certificate(leaf)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return f"the certificate is not for {name}: it has no subjectAltName"
    except (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension,
            x509.UnsupportedGeneralNameType, UnsupportedAlgorithm):  # fmt: skip
        return f"the certificate cannot be read, so that it is not known to be for {name}"
    if name.address is not None:
        addresses = names.get_values_for_type(x509.IPAddress)
        return "" if name.address in addresses else _not_for(name, addresses)
    patterns = names.get_values_for_type(x509.DNSName)
    return "" if any(_matches(each, name.dns) for each in patterns) else _not_for(name, patterns)


def _matches(pattern: str, name: str) -> bool:
    pattern = pattern.lower().removesuffix(".")
    if pattern == name:
        return "*" not in name
    star, _, rest = pattern.partition(".")
    first, _, parent = name.partition(".")
    return star == "*" and bool(first) and rest == parent and "." in rest and "*" not in rest


def _not_for(name: ServerName, found: Sequence[object]) -> str:
    shown = ", ".join(str(each)[:100] for each in found[:_SHOWN])
    more = ", ..." if len(found) > _SHOWN else ""
    return f"the certificate is not for {name} but for {shown or 'no such names'}{more}"
