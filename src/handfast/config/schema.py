"""The configuration as the rest of handfast sees it: frozen, typed, and already checked.

Nothing here validates: `parse` and `from_options` are the only makers, and what they return is
right as far as the text alone can tell. Whether a file exists is for whoever opens it to find out.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

LogLevel: TypeAlias = Literal["FATAL", "ERROR", "WARN", "INFO", "DEBUG"]
ClientAuthMode: TypeAlias = Literal["none", "optional", "require"]


class Secret:
    """A password that was written in the configuration. Only `reveal` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Give the password itself; never put it in a log line or an error."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))


class TcpAddress(Struct, frozen=True, kw_only=True):
    """An IP address or host name, and a port.

    An empty host, for listening only, is every interface over IPv4 and IPv6. Port 0, for
    listening only, is any free port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(Struct, frozen=True, kw_only=True):
    """The path of a Unix stream socket, at most 107 bytes (unix(7))."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address: TypeAlias = TcpAddress | UnixAddress


class Certificate(Struct, frozen=True, kw_only=True):
    """What a listener proves itself with: PEM files, and where the key's password comes from.

    Either `chain` (leaf first) or `cert` is set; `cacerts` goes with `cert`. At most one of the
    three password sources is set.
    """

    chain: str | None = None
    cert: str | None = None
    cacerts: tuple[str, ...] = ()
    key: str
    key_password: Secret | None = None
    key_password_file: str | None = None
    key_password_env: str | None = None


class ClientAuth(Struct, frozen=True, kw_only=True):
    """Whether clients show a certificate, and the PEM files that theirs must lead to."""

    mode: ClientAuthMode = "none"
    trusted_certs: tuple[str, ...] = ()


class Listener(Struct, frozen=True, kw_only=True):
    """One address that speaks TLS, and the plain target behind it."""

    name: str
    address: Address
    certificates: tuple[Certificate, ...]
    client_auth: ClientAuth = ClientAuth()
    target: Address
    alpn: tuple[str, ...] = ()


class Timeouts(Struct, frozen=True, kw_only=True):
    """How long to wait, in seconds. An `idle` of 0 is for ever; a `drain` of 0 is not at all."""

    handshake: float = 10.0
    connect: float = 5.0
    idle: float = 600.0
    half_closed: float = 60.0
    drain: float = 30.0


class Config(Struct, frozen=True, kw_only=True):
    """One whole configuration.

    `logfile` None is standard output. `control` None leaves the control socket's path to the
    command, which derives it.
    """

    nworkers: int
    logfile: str | None = None
    loglevel: LogLevel = "INFO"
    control: str | None = None
    timeouts: Timeouts = Timeouts()
    listeners: tuple[Listener, ...]
