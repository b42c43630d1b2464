"""The configuration as the rest of handfast sees it: frozen, typed, and already checked.

Nothing here validates: `parse` and `from_options` are the only makers, and what they return is
right as far as the text alone can tell. Whether a file exists is for whoever opens it to find out.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from msgspec import Struct

LogLevel: TypeAlias = Literal["FATAL", "ERROR", "WARN", "INFO", "DEBUG"]
ClientAuthMode: TypeAlias = Literal["none", "optional", "require"]
Balance: TypeAlias = Literal["round-robin", "least-connections"]
SendProxy: TypeAlias = Literal["none", "v1", "v2"]
TlsVersion: TypeAlias = Literal["1.2", "1.3"]
IsolationMode: TypeAlias = Literal["preferred", "required"]
KernelTlsMode: TypeAlias = Literal["off", "auto", "on"]
RuleField: TypeAlias = Literal[
    "cn", "ou", "dns", "uri", "ip", "email", "spiffe", "spki", "fingerprint"
]

SYSLOG: Final = "syslog"
JOURNALD: Final = "journald"
"""Values of `logfile` that are no files. A file of that name is written ./syslog."""


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


class TcpAddress(Struct, frozen=True, kw_only=True, tag=True):
    """An IP address or host name, and a port.

    An empty host, for listening only, is every interface over IPv4 and IPv6. Port 0, for
    listening only, is any free port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(Struct, frozen=True, kw_only=True, tag=True):
    """The path of a Unix stream socket, at most 107 bytes (unix(7))."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address: TypeAlias = TcpAddress | UnixAddress


class HandoffAddress(Struct, frozen=True, kw_only=True, tag=True):
    """The path of the Unix socket on which an application takes sessions, at most 107 bytes.

    `user` is whose the application has to be; empty is the owner of the socket, if nobody else
    could have put it there.
    """

    path: str
    user: str = ""

    def __str__(self) -> str:
        return f"handoff:{self.path}"


TargetAddress: TypeAlias = Address | HandoffAddress


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


class Rule(Struct, frozen=True, kw_only=True):
    """One line of who may connect: it applies when every field has a value that matches.

    Values are globs, but for `ip`, which has networks in CIDR form, and `spki` and `fingerprint`,
    which have SHA-256 digests as 64 lower-case hex digits. `*` is any run of characters and `?` is
    one, both within a part: a label of `dns`, a segment of `uri` and `spiffe`, one side of the @ of
    `email`. `**` is a run that crosses parts. A rule without fields applies to every certificate.
    """

    allow: bool
    fields: tuple[tuple[RuleField, tuple[str, ...]], ...] = ()


class ClientAuth(Struct, frozen=True, kw_only=True):
    """Whether clients show a certificate, the PEM files that theirs must lead to, and who may in.

    `crls` are files of PEM or DER. The first rule that applies decides; where there are rules and
    none applies, the certificate is refused. They are for certificates: with mode `optional`, a
    client without one is not asked about.
    """

    mode: ClientAuthMode = "none"
    trusted_certs: tuple[str, ...] = ()
    crls: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()


class TargetTls(Struct, frozen=True, kw_only=True):
    """TLS towards a target: its name must be in a certificate that leads to `trusted_certs`.

    `server_name` empty is the host of the target's address; it is what SNI says, too.
    `trusted_certs` empty is what the system trusts.
    """

    server_name: str = ""
    trusted_certs: tuple[str, ...] = ()


class Target(Struct, frozen=True, kw_only=True):
    """One place to forward to. `max_connections` 0 is no limit; each relay has its share of it."""

    address: TargetAddress
    tls: TargetTls | None = None
    max_connections: int = 0


class Service(Struct, frozen=True, kw_only=True):
    """Targets that are worth the same, how one is picked, and the header it gets first."""

    targets: tuple[Target, ...]
    balance: Balance = "round-robin"
    send_proxy: SendProxy = "none"

    def __str__(self) -> str:
        return " ".join(str(each.address) for each in self.targets)


class Route(Struct, frozen=True, kw_only=True):
    """Where a listener's clients of some names and protocols go; the first that fits is taken.

    `sni` holds names and wildcards like *.example.com (one label), empty for any; `alpn` holds the
    protocols, of which the negotiated one must be one, empty for any. A `passthrough` route is by
    name alone, and its clients speak TLS with the target itself.
    """

    sni: tuple[str, ...] = ()
    alpn: tuple[str, ...] = ()
    passthrough: bool = False
    service: Service


class TlsPolicy(Struct, frozen=True, kw_only=True):
    """What a listener negotiates. `ciphersuites` are names of the IANA registry, empty for all.

    `require_post_quantum` refuses clients without X25519MLKEM768, and so all of TLS 1.2.
    """

    versions: tuple[TlsVersion, ...] = ("1.2", "1.3")
    ciphersuites: tuple[str, ...] = ()
    require_post_quantum: bool = False


class KernelTls(Struct, frozen=True, kw_only=True):
    """Whether clients' sessions move into the kernel, once they have carried `after` bytes.

    `auto` is where the kernel can; with `on`, one that cannot at all is an error.
    """

    mode: KernelTlsMode = "off"
    after: int = 0


class Listener(Struct, frozen=True, kw_only=True):
    """One address that speaks TLS, and what is behind it.

    The first certificate is the default; another is shown to who asks for a name that is in it.
    `service` None leaves clients that no route takes without a target: they are refused.
    `accept_proxy` are the networks (CIDR form) whose connections begin with a PROXY header.
    """

    name: str
    address: Address
    certificates: tuple[Certificate, ...]
    client_auth: ClientAuth = ClientAuth()
    service: Service | None = None
    routes: tuple[Route, ...] = ()
    alpn: tuple[str, ...] = ()
    tls: TlsPolicy = TlsPolicy()
    kernel_tls: KernelTls = KernelTls()
    accept_proxy: tuple[str, ...] = ()
    max_connections: int = 0


class Timeouts(Struct, frozen=True, kw_only=True):
    """How long to wait, in seconds. `idle` and `lifetime` 0 are for ever; `drain` 0 not at all."""

    handshake: float = 10.0
    connect: float = 5.0
    idle: float = 600.0
    half_closed: float = 60.0
    lifetime: float = 0.0
    drain: float = 30.0


class Limits(Struct, frozen=True, kw_only=True):
    """How much is let in, by all processes together; 0 is no limit.

    A source is a network of `source_prefix_v4` or `source_prefix_v6` bits. `handshake_rate` is
    new handshakes a second of one source; `handshakes` is how many may be in progress in all.
    """

    connections: int = 0
    connections_per_source: int = 0
    handshake_rate_per_source: int = 0
    handshakes: int = 0
    source_prefix_v4: int = 32
    source_prefix_v6: int = 64


class Isolation(Struct, frozen=True, kw_only=True):
    """What acceptors and relays run as, when started as root; `mode` says if less will do.

    `group` empty is the user's own. `chroot` empty is an empty directory of handfast's.
    """

    user: str = "nobody"
    group: str = ""
    chroot: str = ""
    mode: IsolationMode = "preferred"


class Config(Struct, frozen=True, kw_only=True):
    """One whole configuration.

    `logfile` None is standard output. `control` None leaves the control socket's path to the
    command, which derives it. `metrics` None serves none. `watch` reloads when a file changes.
    """

    nworkers: int
    logfile: str | None = None
    loglevel: LogLevel = "INFO"
    control: str | None = None
    pidfile: str | None = None
    metrics: Address | None = None
    watch: bool = False
    isolation: Isolation = Isolation()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    listeners: tuple[Listener, ...]

    @property
    def services(self) -> tuple[Service, ...]:
        """Every service, those of the routes too."""
        found: list[Service] = []
        for listener in self.listeners:
            found += [listener.service] if listener.service is not None else []
            found += [route.service for route in listener.routes]
        return tuple(found)

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every target of every service."""
        return tuple(target for service in self.services for target in service.targets)
