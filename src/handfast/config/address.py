"""Addresses as text: `host:port`, `[::1]:443`, `:8443`, `tcp://host:port`, `unix:/path`, CIDR.

`handoff:/path` is where an application takes sessions.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Final

from handfast.config.document import UNPRINTABLE, shown
from handfast.config.schema import (
    Address,
    HandoffAddress,
    TargetAddress,
    TcpAddress,
    UnixAddress,
)
from handfast.errors import ConfigError

MAX_UNIX_PATH: Final = 107  # bytes: sun_path of unix(7) is 108 with its final NUL
_IP: Final = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")
_NETWORK: Final = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?")
# RFC 1123 section 2.1, with the underscore that container networks use. The last label is not
# all digits: that is a mistyped IPv4 address.
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
NAME: Final = re.compile(rf"(?:{_LABEL}\.)*(?![0-9]+\.?\Z){_LABEL}\.?")
_TCP: Final = re.compile(
    r"(?:\[(?P<v6>[^\]]*)\]|(?P<host>[^\[\]]*)):(?P<port>[0-9]{1,5})", re.DOTALL
)
_CREDENTIALS: Final = re.compile(r"^(\w*:?(?://)?)[^@]*@", re.DOTALL)


def parse_listen(text: str) -> Address:
    """Parse an address to listen on; raises ConfigError.

    `host:port`, `[v6]:port`, `:port` (every interface), or `unix:path`. Port 0 is any free port.
    """
    if text.startswith("unix:"):
        return parse_unix(text)
    match = _TCP.fullmatch(text)
    if match is None:
        raise ConfigError(_not(text, "host:port, [IPv6]:port, :port or unix:/path"))
    if match["v6"] is None and not match["host"]:
        return TcpAddress(host="", port=_port(match["port"], 0))
    return _tcp(match, 0)


def parse_target(text: str, base: str = "") -> TargetAddress:
    """Parse `tcp://host:port`, `unix:path` or `handoff:path`; raises ConfigError.

    A relative path is joined to `base`.
    """
    if text.startswith("unix:"):
        return parse_unix(text, base)
    if text.startswith("handoff:"):
        return HandoffAddress(path=_socket_path(text, "handoff:", base))
    match = _TCP.fullmatch(text.removeprefix("tcp://"))
    if match is None or not text.startswith("tcp://"):
        raise ConfigError(_not(text, "tcp://host:port, unix:/path or handoff:/path"))
    return _tcp(match, 1)


def parse_unix(text: str, base: str = "") -> UnixAddress:
    """Parse `unix:path`, a relative path being joined to `base`; raises ConfigError."""
    return UnixAddress(path=_socket_path(text, "unix:", base))


def _socket_path(text: str, scheme: str, base: str) -> str:
    path = text.removeprefix(scheme)
    if not path or UNPRINTABLE.search(path):
        raise ConfigError(_not(text, f"{scheme} and the path of a socket"))
    path = os.path.join(base, path)  # noqa: PTH118  text, and pathlib would drop a leading ./
    if len(path.encode()) > MAX_UNIX_PATH:
        raise ConfigError(f"the socket's path is longer than {MAX_UNIX_PATH} bytes; shorten it")
    return path


def parse_ip(text: str) -> str:
    """Parse an IP address, giving its usual spelling; raises ConfigError."""
    if _IP.fullmatch(text):
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            pass
    raise ConfigError(_not(text, "an IP address"))


def parse_network(text: str) -> str:
    """Parse an IP address or a network, giving CIDR form; raises ConfigError."""
    if not _NETWORK.fullmatch(text):
        raise ConfigError(_not(text, "an IP address, or a network such as 10.0.0.0/8"))
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(_not(text, "an IP address, or a network such as 10.0.0.0/8")) from None
    if network.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise ConfigError(f"{text} has bits set after its prefix; write {network}")
    return str(network)


def parse_host(text: str) -> str:
    """Parse an IP address or a host name (RFC 1123); raises ConfigError."""
    if NAME.fullmatch(text) and len(text) <= 253:
        return text
    try:
        return parse_ip(text)
    except ConfigError:
        raise ConfigError(_not(text, "an IP address or a host name")) from None


def _tcp(match: re.Match[str], lowest: int) -> TcpAddress:
    port = _port(match["port"], lowest)
    if match["v6"] is None:
        if ":" in match["host"]:
            raise ConfigError(_not(match["host"], "an IPv6 address in brackets, as in [::1]:443"))
        return TcpAddress(host=parse_host(match["host"]), port=port)
    host = parse_ip(match["v6"])
    if ":" not in host:
        raise ConfigError(_not(match["v6"], "an IPv6 address inside the brackets"))
    return TcpAddress(host=host, port=port)


def _port(digits: str, lowest: int) -> int:
    if not lowest <= int(digits) <= 65535:
        raise ConfigError(f"expected a port from {lowest} to 65535, got {int(digits)}")
    return int(digits)


def _not(text: str, expected: str) -> str:
    """Say what was expected; what stands before an @ may be a password and is left out."""
    visible = _CREDENTIALS.sub(r"\1***@", text)
    return f"expected {expected}, got {shown(visible)}"
