"""The configuration: text in, frozen typed structs out, every mistake named by path and line."""

from handfast.config.address import parse_listen, parse_target
from handfast.config.dialects import parse
from handfast.config.effective import effective
from handfast.config.options import from_options
from handfast.config.places import locate
from handfast.config.schema import (
    Address,
    Certificate,
    ClientAuth,
    ClientAuthMode,
    Config,
    Listener,
    LogLevel,
    Secret,
    TcpAddress,
    Timeouts,
    UnixAddress,
)

__all__ = [
    "Address",
    "Certificate",
    "ClientAuth",
    "ClientAuthMode",
    "Config",
    "Listener",
    "LogLevel",
    "Secret",
    "TcpAddress",
    "Timeouts",
    "UnixAddress",
    "effective",
    "from_options",
    "locate",
    "parse",
    "parse_listen",
    "parse_target",
]
