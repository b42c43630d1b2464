"""The two dialects of the configuration, and how both become one Config.

A file with `listeners` is in the full dialect. Any other is in the flat one, which describes a
single listener with keys at the top. Both share the keys of COMMON.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final, get_args

from handfast.config import scalars
from handfast.config.address import parse_host, parse_ip
from handfast.config.document import Kind, Value, read
from handfast.config.listeners import LISTENER, listener
from handfast.config.scalars import AnyParser, boolean, choice, count, duration, file, integer
from handfast.config.schema import (
    Certificate,
    ClientAuth,
    Config,
    Isolation,
    IsolationMode,
    Limits,
    Listener,
    LogLevel,
    Service,
    Target,
    TcpAddress,
    Timeouts,
)
from handfast.config.shape import Shape, either, excludes, keywords, list_of, required
from handfast.errors import ConfigError, Problem

MAX_WORKERS: Final = 1024

TIMEOUTS: Final[dict[str, AnyParser]] = {
    "handshake-timeout": duration(1),
    "connect-timeout": duration(1),
    "idle-timeout": duration(0),
    "half-closed-timeout": duration(1),
    "lifetime-timeout": duration(0),
    "drain-timeout": duration(0),
}
ISOLATION: Final[dict[str, AnyParser]] = {
    "user": scalars.text,
    "group": scalars.text,
    "chroot": file,
    "isolation": choice(*get_args(IsolationMode)),
}
LIMITS: Final = Shape(
    fields={
        "connections": count,
        "connections-per-source": count,
        "handshake-rate-per-source": count,
        "handshakes": count,
        "source-prefix-v4": integer(1, 32),
        "source-prefix-v6": integer(1, 128),
    }
)


def _limits(value: Value) -> Limits:
    return Limits(**keywords(LIMITS.read(value)))


COMMON: Final[dict[str, AnyParser]] = {
    "nworkers": integer(0, MAX_WORKERS),
    "logfile": scalars.output,
    "loglevel": choice(*get_args(LogLevel)),
    "control": file,
    "pidfile": file,
    "metrics": scalars.listen,
    "watch": boolean,
    **ISOLATION,
    **TIMEOUTS,
    "limits": _limits,
}

# The flat keys that have another name and place in the full dialect.
_IN_FULL: Final = {
    "target-ip": "`target: tcp://host:port` in a listener",
    "target-port": "`target: tcp://host:port` in a listener",
    "listen-ip": "`listen: host:port` in a listener",
    "listen-port": "`listen: host:port` in a listener",
    "cacerts": "`cacerts` in a listener's `certificates`",
    "servcert": "`cert` in a listener's `certificates`",
    "servkey": "`key` in a listener's `certificates`",
    "servkeypass": "`key-password` in a listener's `certificates`",
    "servkeypass-file": "`key-password-file` in a listener's `certificates`",
    "servkeypass-env": "`key-password-env` in a listener's `certificates`",
    "cert-chain": "`chain` in a listener's `certificates`",
    "trusted-certs": "`client-auth: {mode: require, trusted-certs: [...]}` in a listener",
}
FULL: Final = Shape(
    fields={**COMMON, "listeners": list_of(listener)},
    elsewhere={
        key: f"belongs to the flat dialect, which `listeners` replaces; write {place}"
        for key, place in _IN_FULL.items()
    }
    | dict.fromkeys(LISTENER.fields, "belongs in an entry of `listeners`"),
)
_FLAT_PASSWORDS: Final = ("servkeypass", "servkeypass-file", "servkeypass-env")
FLAT: Final = Shape(
    fields={
        **COMMON,
        "target-ip": scalars.by(parse_host, "an IP address or a host name"),
        "target-port": integer(1, 65535),
        "listen-ip": scalars.by(parse_ip, "an IP address"),
        "listen-port": integer(0, 65535),
        "cacerts": list_of(file),
        "servcert": file,
        "servkey": file,
        "servkeypass": scalars.password,
        "servkeypass-file": file,
        "servkeypass-env": scalars.variable,
        "cert-chain": file,
        "trusted-certs": list_of(file),
    },
    rules=(
        required("listen-ip", "the address to listen on, such as 0.0.0.0, or use `listeners`"),
        required("listen-port", "the port to listen on, or use `listeners`"),
        required("target-ip", "the address to forward to, or use `listeners`"),
        required("target-port", "the port to forward to, or use `listeners`"),
        required("servkey", "the file of the private key"),
        either("cert-chain", "servcert", "`cert-chain`, one PEM file with the leaf first"),
        excludes("cert-chain", "cacerts", "servcert"),
        *(excludes(a, b) for a, b in (*pairwise(_FLAT_PASSWORDS), _FLAT_PASSWORDS[::2])),
    ),
    elsewhere=dict.fromkeys(
        LISTENER.fields.keys(), "belongs in an entry of `listeners`, which replaces the flat keys"
    ),
)


def parse(text: str, *, base: str = "", cores: int = 1) -> Config:
    """Parse a configuration in either dialect.

    Relative file names are joined to `base`, the directory of the file. `cores` is how many cores
    may be used: the meaning of `nworkers: 0`. Raises ConfigError with every mistake, by line.
    """
    document = read(text, base)
    problems = list(document.problems)
    try:
        config = _config(document.root, cores)
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(*sorted(problems, key=lambda problem: problem.line))
    return config


def _config(root: Value, cores: int) -> Config:
    if root.kind is Kind.BROKEN:
        raise ConfigError
    if root.kind is not Kind.MAPPING:
        # The text may be `servkeypass:secret`, with the space forgotten.
        raise scalars.expected(root, "keys and values, such as `listeners:`", secret=True)
    if "listeners" not in root.entries:
        found = FLAT.read(root)
        return assemble(found, (_flat_listener(found),), cores)
    found = FULL.read(root)
    listeners: tuple[Listener, ...] = found.pop("listeners")
    if problems := list(_collisions(listeners, root.entries["listeners"].items)):
        raise ConfigError(*problems)
    return assemble(found, listeners, cores)


def assemble(found: dict[str, Any], listeners: tuple[Listener, ...], cores: int) -> Config:
    """Put a Config together from what COMMON's parsers found; other keys are ignored."""
    timeouts = {key.removesuffix("-timeout"): found[key] for key in TIMEOUTS if key in found}
    isolation = {
        "mode" if key == "isolation" else key: found[key] for key in ISOLATION if key in found
    }
    plain = COMMON.keys() - TIMEOUTS.keys() - ISOLATION.keys()
    rest = {key: found[key] for key in plain if key in found}
    return Config(
        **{
            **rest,
            "nworkers": found.get("nworkers") or cores,
            "isolation": Isolation(**isolation),
            "timeouts": Timeouts(**keywords(timeouts)),
            "listeners": listeners,
        }
    )


def _flat_listener(found: dict[str, Any]) -> Listener:
    address = TcpAddress(host=found["listen-ip"], port=found["listen-port"])
    target = TcpAddress(host=found["target-ip"], port=found["target-port"])
    trusted = found.get("trusted-certs", ())
    certificate = Certificate(
        chain=found.get("cert-chain"),
        cert=found.get("servcert"),
        cacerts=found.get("cacerts", ()),
        key=found["servkey"],
        key_password=found.get("servkeypass"),
        key_password_file=found.get("servkeypass-file"),
        key_password_env=found.get("servkeypass-env"),
    )
    return Listener(
        name=str(address),
        address=address,
        certificates=(certificate,),
        client_auth=ClientAuth(mode="require" if trusted else "none", trusted_certs=trusted),
        service=Service(targets=(Target(address=target),)),
    )


def _collisions(listeners: tuple[Listener, ...], values: tuple[Value, ...]) -> Iterable[Problem]:
    """Find addresses and names that two listeners share; port 0 is a new port each time."""
    seen: dict[tuple[str, str], Value] = {}
    for one, value in zip(listeners, values, strict=True):
        address = one.address
        free = isinstance(address, TcpAddress) and address.port == 0
        claims = {} if free else {"listen": str(address)}
        if one.name != str(address):
            claims["name"] = one.name
        for key, claim in claims.items():
            first = seen.setdefault((key, claim), value)
            if first is not value:
                message = f"is the same as that of {first.path} on line {first.line}; change one"
                yield value.entries[key].problem(message)
