"""What `effective` writes is the configuration that it was given, for any configuration."""

from __future__ import annotations

import ipaddress
from typing import TypeVar, get_args

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from handfast import config
from handfast.config.document import Kind, Value
from handfast.config.negotiation import SUITES
from handfast.config.schema import IsolationMode
from handfast.config.services import unreachable

T = TypeVar("T")


def tuples(of: st.SearchStrategy[T], least: int = 0) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(of, min_size=least, max_size=3).map(tuple)


def optional(of: st.SearchStrategy[T]) -> st.SearchStrategy[T | None]:
    return st.none() | of


def milliseconds(lowest: int) -> st.SearchStrategy[float]:
    return st.integers(lowest, 7 * 24 * 3_600_000).map(lambda time: time / 1000)


def network(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int) -> str:
    return str(ipaddress.ip_network(f"{ip}/{min(bits, ip.max_prefixlen)}", strict=False))


TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)
PATHS = TEXTS.filter(lambda path: path not in {"-", config.SYSLOG, config.JOURNALD})
COUNTS = st.integers(0, 10_000_000)
NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{1,3}){0,2}", fullmatch=True)
PATTERNS = NAMES | NAMES.map("*.{}".format)
IPS = st.ip_addresses().map(str)
NETWORKS = st.builds(network, st.ip_addresses(), st.integers(0, 128))
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
PROTOCOLS = st.sampled_from(("h2", "http/1.1", "postgresql", "x"))
UNIX = st.from_regex(r"/[a-z./ ]{1,40}", fullmatch=True).map(lambda p: config.UnixAddress(path=p))
TCP = st.builds(config.TcpAddress, host=NAMES | IPS, port=st.integers(1, 65535))
LISTENS = st.builds(config.TcpAddress, host=st.just("") | NAMES | IPS, port=st.just(0)) | UNIX

CHAINS = st.builds(config.Certificate, chain=PATHS, key=PATHS, key_password_file=optional(PATHS))
LEAVES = st.builds(
    config.Certificate,
    cert=PATHS,
    cacerts=tuples(PATHS),
    key=PATHS,
    key_password_env=optional(st.just("KEY_PASSWORD")),
)
ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)
VALUES: dict[config.RuleField, st.SearchStrategy[str]] = {
    "ip": NETWORKS,
    "spki": DIGESTS,
    "fingerprint": DIGESTS,
    "dns": ASCII,
    "uri": ASCII,
    "email": ASCII,
    "spiffe": ASCII.map("spiffe://{}".format),
}
FIELDS = st.lists(
    st.sampled_from(get_args(config.RuleField)).flatmap(
        lambda field: st.tuples(st.just(field), tuples(VALUES.get(field, TEXTS), 1))
    ),
    unique_by=lambda item: item[0],
    max_size=4,
).map(tuple)
RULES = st.builds(config.Rule, allow=st.booleans(), fields=FIELDS)
CLIENTS = st.just(config.ClientAuth()) | st.builds(
    config.ClientAuth,
    mode=st.sampled_from(("optional", "require")),
    trusted_certs=tuples(PATHS, 1),
    crls=tuples(PATHS),
    rules=tuples(RULES),
)
TARGET_TLS = st.builds(config.TargetTls, server_name=NAMES | IPS, trusted_certs=tuples(PATHS))
APPLICATIONS = st.builds(
    config.Target,
    address=st.builds(
        config.HandoffAddress,
        path=st.from_regex(r"/[a-z./ ]{1,40}", fullmatch=True),
        user=st.just("") | TEXTS,
    ),
)
TARGETS = st.builds(config.Target, address=TCP | UNIX, max_connections=COUNTS)
TLS_TARGETS = st.builds(
    config.Target, address=TCP | UNIX, tls=TARGET_TLS, max_connections=COUNTS
) | st.builds(config.Target, address=TCP, tls=st.just(config.TargetTls()))


def services(targets: st.SearchStrategy[config.Target]) -> st.SearchStrategy[config.Service]:
    return st.builds(
        config.Service,
        targets=tuples(targets, 1),
        balance=st.sampled_from(get_args(config.Balance)),
        send_proxy=st.sampled_from(get_args(config.SendProxy)),
    )


SERVICES = services(TARGETS | TLS_TARGETS) | st.builds(
    config.Service, targets=tuples(TARGETS | APPLICATIONS, 1)
)
PASSTHROUGH = st.builds(
    config.Route, sni=tuples(PATTERNS, 1), passthrough=st.just(True), service=services(TARGETS)
)
ROUTES = (
    PASSTHROUGH
    | st.builds(config.Route, sni=tuples(PATTERNS, 1), alpn=tuples(PROTOCOLS), service=SERVICES)
    | st.builds(config.Route, alpn=tuples(PROTOCOLS, 1), service=SERVICES)
)
POLICIES = (
    st.just(config.TlsPolicy(versions=("1.3",), require_post_quantum=True))
    | st.builds(config.TlsPolicy, versions=st.sampled_from((("1.2",), ("1.3",), ("1.2", "1.3"))))
    | st.permutations(list(SUITES)).map(lambda all_: config.TlsPolicy(ciphersuites=tuple(all_)))
)

OFF = config.KernelTls()
KERNEL_TLS = st.just(OFF) | st.builds(
    config.KernelTls, mode=st.sampled_from(("auto", "on")), after=st.integers(0, 1 << 40)
)


@st.composite
def listeners(draw: st.DrawFn, number: int) -> config.Listener:
    address = draw(LISTENS)
    passes_all_through = draw(st.booleans())
    routes = draw(tuples(PASSTHROUGH, 1) if passes_all_through else tuples(ROUTES))
    places = tuple(Value(kind=Kind.MAPPING) for _ in routes)
    assume(not list(unreachable(routes, places)))
    needs_own = not passes_all_through and not routes
    return config.Listener(
        name=f"{draw(TEXTS)}{number}",
        address=address,
        certificates=() if passes_all_through else draw(tuples(CHAINS | LEAVES, 1)),
        client_auth=draw(CLIENTS),
        service=None if passes_all_through else draw(SERVICES if needs_own else optional(SERVICES)),
        routes=routes,
        alpn=("h2", "http/1.1", "postgresql", "x"),
        tls=draw(POLICIES),
        kernel_tls=draw(KERNEL_TLS if isinstance(address, config.TcpAddress) else st.just(OFF)),
        accept_proxy=() if isinstance(address, config.UnixAddress) else draw(tuples(NETWORKS)),
        max_connections=draw(COUNTS),
    )


TIMEOUTS = st.builds(
    config.Timeouts,
    handshake=milliseconds(1),
    connect=milliseconds(1),
    idle=milliseconds(0),
    half_closed=milliseconds(1),
    lifetime=milliseconds(0),
    drain=milliseconds(0),
)
LIMITS = st.builds(
    config.Limits,
    connections=COUNTS,
    connections_per_source=COUNTS,
    handshake_rate_per_source=COUNTS,
    handshakes=COUNTS,
    source_prefix_v4=st.integers(1, 32),
    source_prefix_v6=st.integers(1, 128),
)
ISOLATIONS = st.builds(
    config.Isolation,
    user=TEXTS,
    group=st.just("") | TEXTS,
    chroot=st.just("") | PATHS,
    mode=st.sampled_from(get_args(IsolationMode)),
)
LOGFILES = st.none() | PATHS | st.sampled_from((config.SYSLOG, config.JOURNALD, "./syslog", "./-"))
CONFIGS = st.builds(
    config.Config,
    nworkers=st.integers(1, 1024),
    logfile=LOGFILES,
    loglevel=st.sampled_from(get_args(config.LogLevel)),
    control=optional(PATHS),
    pidfile=optional(PATHS),
    metrics=optional(LISTENS),
    watch=st.booleans(),
    isolation=ISOLATIONS,
    limits=LIMITS,
    timeouts=TIMEOUTS,
    listeners=st.lists(st.integers(10, 99), unique=True, min_size=1, max_size=2).flatmap(
        lambda numbers: st.tuples(*(listeners(number) for number in numbers))
    ),
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(CONFIGS)
def test_parsing_what_effective_writes_gives_the_same_configuration(given_: config.Config) -> None:
    sockets = [
        str(each.address)
        for each in given_.listeners
        if isinstance(each.address, config.UnixAddress)
    ]
    assume(len(set(sockets)) == len(sockets))

    assert config.parse(config.effective(given_)) == given_
