"""What can be logged, one class per event.

Stages build these values and hand them on; only wiring code writes them (`log.Log`). A field is
written under its own name, in the order in which it is declared, and is left out while it has its
default or is empty. Fields hold text, integers, floats and booleans only: `logfmt` relies on that,
and so does `gc=False` (nothing here can be part of a reference cycle). Bytes that a peer sent
become text by `logfmt.text`.

Levels follow blame. What a peer can cause at will is INFO, so that scanning the port neither fills
a log kept at WARN nor forces a write per event; what the operator should look at is WARN; what
stops handfast from doing its work is ERROR, or FATAL when it ends the process.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Literal

import msgspec


class Level(IntEnum):
    """How important an event is. A log kept at one level has that one and those before it."""

    FATAL = 0
    ERROR = 1
    WARN = 2
    INFO = 3
    DEBUG = 4


class Event(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What all events have in common: a name, and a level that depends on the class."""

    NAME: ClassVar[str]
    LEVEL: ClassVar[Level] = Level.INFO

    @property
    def level(self) -> Level:
        """Give the level of this very event; most classes have one level for all of theirs."""
        return self.LEVEL


class Startup(Event, frozen=True):
    """The supervisor started. `argv` is one string, as `shlex.join` makes it."""

    NAME = "startup"
    argv: str
    version: str


class Worker(Event, frozen=True):
    """The supervisor started a process or lost one. `error_msg` says how a dead one ended."""

    NAME = "worker"
    worker_state: Literal["spawned", "dead"]
    worker_id: str
    worker_pid: int
    error_msg: str = ""

    @property
    def level(self) -> Level:
        """A process that died with a reason is an ERROR; one that was told to end is INFO."""
        return Level.ERROR if self.worker_state == "dead" and self.error_msg else Level.INFO


class ConfigLoaded(Event, frozen=True, kw_only=True):
    """A configuration was read or read again. Lists are joined by `:`, as in a search path."""

    NAME = "config_loaded"
    nworkers: int
    certchain: str = ""
    cacerts: str = ""
    servcert: str = ""
    servkey: str = ""
    listener: str = ""
    target: str = ""


class CertLoaded(Event, frozen=True, kw_only=True):
    """A certificate was loaded. The fingerprint is SHA-256 in hex; the dates are RFC 3339.

    `error_msg` says what is wrong with a certificate that is used all the same (it expired), and
    makes the event a WARN.
    """

    NAME = "cert_loaded"
    cert_role: Literal["leaf", "server_ca", "client_ca"]
    cert_fingerprint: str
    cert_notbefore: str
    cert_notafter: str
    cert_subject: str
    cert_issuer: str
    error_msg: str = ""

    @property
    def level(self) -> Level:
        """A sound certificate is INFO, a doubtful one WARN."""
        return Level.WARN if self.error_msg else Level.INFO


class SystemFault(Event, frozen=True):
    """Something outside any connection failed: what handfast says, and what the system said.

    `fatal` is written only when it is true, and says that the process ends because of this.
    """

    NAME = "system_error"
    error_msg: str
    error_desc: str = ""
    fatal: bool = False

    @property
    def level(self) -> Level:
        """FATAL ends the process; ERROR does not."""
        return Level.FATAL if self.fatal else Level.ERROR


class SignalReceived(Event, frozen=True):
    """A signal arrived: its number, its name by `signal.strsignal`, the sender's pid if known."""

    NAME = "signal_received"
    signal_num: int
    signal_string: str
    recvd_from: int | None = None


class Listening(Event, frozen=True):
    """A listener accepts connections. For a Unix socket `listen_ip` is its path."""

    NAME = "listening"
    listen_ip: str
    listen_port: int | None = None


class Draining(Event, frozen=True):
    """No new connection is accepted; those in progress may go on for at most `seconds`."""

    NAME = "draining"
    seconds: float


class Stopped(Event, frozen=True):
    """The supervisor ends; nothing follows."""

    NAME = "stopped"


class LogDropped(Event, frozen=True):
    """The log could not be written for a while, and `lines` lines of this process were lost."""

    NAME = "log_dropped"
    LEVEL = Level.WARN
    lines: int


class Proxy(Event, frozen=True, kw_only=True):
    """A connection came, reached its target, was handed over to an application, or ended.

    `duration_ms` is the time to connect for server_connect, and to be taken for handed_over; for
    the disconnects it is the life of the connection. `bytes_in` and `bytes_out` count the client's
    plaintext, from it and to it.
    `transport` is where its session was then: user, kernel, or kernel-tx for our direction alone.
    """

    NAME = "proxy"
    subevent: Literal[
        "client_connect", "server_connect", "handed_over", "client_disconnect", "server_disconnect"
    ]
    client_ip: str = ""
    client_port: int | None = None
    listen_ip: str = ""
    listen_port: int | None = None
    server_ip: str = ""
    server_port: int | None = None
    sni: str = ""
    alpn: str = ""
    tls_version: str = ""
    group: str = ""
    bytes_in: int | None = None
    bytes_out: int | None = None
    duration_ms: float | None = None
    transport: str = ""
    error_msg: str = ""
    error_desc: str = ""

    @property
    def level(self) -> Level:
        """A target that cannot be reached is a WARN; the rest is everyday."""
        failed = self.error_msg and self.subevent == "server_connect"
        return Level.WARN if failed else Level.INFO


class Auth(Event, frozen=True, kw_only=True):
    """A handshake ended, well or not. One that failed gives exactly one event.

    `outcome` is granted; denied, when the peer was refused for what it offered, showed or sent; or
    failed, when it did not come to that: silence, a reset, the peer gave up, or a fault of ours.
    `reason` is a short token, `error_msg` says the same to people. `alert` is the name of the
    alert and whether it was sent or received, and `duration_ms` counts from `accept`. A granted
    handshake with a client certificate is followed by a second event, mtls, that describes it.

    All of them are INFO: a peer can cause each of them at will.
    """

    NAME = "auth"
    subevent: Literal["handshake", "mtls"]
    outcome: Literal["granted", "denied", "failed"]
    client_ip: str = ""
    client_port: int | None = None
    listen_ip: str = ""
    listen_port: int | None = None
    reason: str = ""
    alert: str = ""
    error_msg: str = ""
    error_desc: str = ""
    sni: str = ""
    alpn: str = ""
    tls_version: str = ""
    ciphersuite: str = ""
    group: str = ""
    resumed: bool | None = None
    offered_versions: str = ""
    client_cert_fingerprint: str = ""
    client_cert_subject: str = ""
    client_cert_issuer: str = ""
    duration_ms: float | None = None


class Target(Event, frozen=True, kw_only=True):
    """A relay could not connect to a target that had been up, or could again; each relay's own.

    `address` is as in the configuration. INFO when it is up, WARN when it is down.
    """

    NAME = "target"
    state: Literal["up", "down"]
    address: str
    error_msg: str = ""
    error_desc: str = ""

    @property
    def level(self) -> Level:
        """Somebody has to look after a target that is down."""
        return Level.WARN if self.state == "down" else Level.INFO


class KernelTls(Event, frozen=True, kw_only=True):
    """What the kernel was seen to do for a configuration that wants kernel TLS.

    `tx` and `rx` are the ciphers that it sends and receives with, by version (1.3-AES_128_GCM) and
    joined by `:`. `rekey` tells that it can follow a KeyUpdate.
    """

    NAME = "kernel_tls"
    tx: str = ""
    rx: str = ""
    rekey: bool | None = None
    error_msg: str = ""
    error_desc: str = ""


class KernelRefused(Event, frozen=True, kw_only=True):
    """The kernel did not take a direction of a client's session, which stays in user space.

    DEBUG: nobody has to act, and the metrics count it.
    """

    NAME = "kernel_tls_refused"
    LEVEL = Level.DEBUG
    direction: Literal["tx", "rx"]
    client_ip: str = ""
    client_port: int | None = None
    error_desc: str = ""


class Doubtful(Event, frozen=True):
    """Something in the configuration or its files works, but perhaps not as it is meant."""

    NAME = "config_warning"
    LEVEL = Level.WARN
    error_msg: str


class Upgrade(Event, frozen=True, kw_only=True):
    """Another program has taken the place of the one before, or has not: `error_msg` says why.

    `returned` means that it did not come up, and that the one before serves again.
    `connections_moved` are those that it went on with, and `longest_stall_ms` how long one of them
    stood still at most. `duration_ms` is from the order to the end of the last old process.
    """

    NAME = "upgrade"
    outcome: Literal["ok", "refused", "returned"]
    from_version: str
    to_version: str
    connections_moved: int | None = None
    longest_stall_ms: float | None = None
    duration_ms: float
    error_msg: str = ""

    @property
    def level(self) -> Level:
        """One that worked is INFO, any other ERROR."""
        return Level.INFO if self.outcome == "ok" else Level.ERROR


class Stowed(Event, frozen=True, kw_only=True):
    """The service manager keeps connections while handfast is started again.

    `connections` are kept, in `descriptors` with all else; `ended` were to be and are not.
    `duration_ms` is from the order to now.
    """

    NAME = "stowed"
    connections: int
    ended: int
    descriptors: int
    duration_ms: float
    error_msg: str = ""

    @property
    def level(self) -> Level:
        """Clients notice those that have ended."""
        return Level.ERROR if self.ended or self.error_msg else Level.INFO


class Restored(Event, frozen=True, kw_only=True):
    """What the service manager kept is back: `connections` go on, `ended` do not.

    `duration_ms` is from the order to the program before, so that no connection stood longer.
    """

    NAME = "restored"
    from_version: str
    connections: int
    ended: int
    duration_ms: float
    error_msg: str = ""

    @property
    def level(self) -> Level:
        """Clients notice those that have ended."""
        return Level.ERROR if self.ended or self.error_msg else Level.INFO


class Reload(Event, frozen=True, kw_only=True):
    """A new generation of the configuration serves (`ok`), or was refused and changed nothing."""

    NAME = "reload"
    outcome: Literal["ok", "refused"]
    generation: int
    duration_ms: float
    error_msg: str = ""

    @property
    def level(self) -> Level:
        """Somebody has to mend what was refused."""
        return Level.ERROR if self.outcome == "refused" else Level.INFO


class Accepting(Event, frozen=True):
    """A process takes no new connections for want of descriptors or memory, or does again."""

    NAME = "accepting"
    state: Literal["paused", "resumed"]
    error_msg: str = ""
    error_desc: str = ""

    @property
    def level(self) -> Level:
        """Clients wait while it is paused."""
        return Level.ERROR if self.state == "paused" else Level.INFO


class Refused(Event, frozen=True, kw_only=True):
    """Connections were refused because of a limit, `count` of them since the last such event.

    `client_ip` is the first of theirs. `reason` is the limit's name.
    """

    NAME = "refused"
    reason: Literal[
        "connections",
        "listener_connections",
        "handshakes",
        "source_connections",
        "source_rate",
    ]
    listen_ip: str = ""
    listen_port: int | None = None
    client_ip: str = ""
    count: int

    @property
    def level(self) -> Level:
        """A source's own limit is its own doing; the others shut out people who did nothing."""
        return Level.INFO if self.reason.startswith("source_") else Level.WARN
