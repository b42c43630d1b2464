"""What a configuration text becomes, in both dialects, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from handfast import config
from handfast.config.clients import CLIENT_AUTH, RULE, WHO
from handfast.config.dialects import FLAT as FLAT_SHAPE
from handfast.config.dialects import FULL, LIMITS
from handfast.config.listeners import CERTIFICATE
from handfast.config.listeners import LISTENER as LISTENER_SHAPE
from handfast.config.negotiation import TLS
from handfast.config.services import ROUTE, TARGET, TARGET_TLS
from handfast.config.shape import Shape
from handfast.errors import ConfigError

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
FLAT = """\
listen-ip: 0.0.0.0
listen-port: 8443
target-ip: 127.0.0.1
target-port: 8080
servkey: key.pem
cert-chain: chain.pem
"""
SHAPES = (FLAT_SHAPE, FULL, LIMITS, LISTENER_SHAPE, CERTIFICATE, TLS, CLIENT_AUTH, RULE, WHO,
          TARGET, TARGET_TLS, ROUTE)  # fmt: skip
LISTENER = "{listen: '127.0.0.1:0', target: 'unix:/s', certificates: [{chain: c, key: k}]}"


def mistakes(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text)
    return str(caught.value)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads_and_survives_effective(path: Path) -> None:
    parsed = config.parse(path.read_text(), base="/etc/handfast", cores=4)

    assert config.parse(config.effective(parsed)) == parsed


def test_the_flat_example_has_every_key_of_the_dialect() -> None:
    text = (ROOT / "examples" / "flat.yaml").read_text()

    assert [key for key in FLAT_SHAPE.fields if f"{key}:" not in text] == []


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(list(shape.fields)[:2]))
def test_the_reference_names_every_key(shape: Shape) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()

    assert [key for key in shape.fields if f"`{key}`" not in text] == []


def test_the_flat_dialect_becomes_one_listener() -> None:
    parsed = config.parse(FLAT + "trusted-certs: [ca.pem]\nconnect-timeout: 250\n", base="/etc")

    (listener,) = parsed.listeners
    assert listener.name == str(listener.address) == "0.0.0.0:8443"
    target = config.Target(address=config.TcpAddress(host="127.0.0.1", port=8080))
    assert listener.service == config.Service(targets=(target,))
    assert listener.certificates == (
        config.Certificate(chain="/etc/chain.pem", key="/etc/key.pem"),
    )
    assert listener.client_auth == config.ClientAuth(mode="require", trusted_certs=("/etc/ca.pem",))
    assert parsed.timeouts == config.Timeouts(connect=0.25)


def test_the_keys_for_the_whole_of_handfast_are_the_same_in_both_dialects() -> None:
    common = """\
pidfile: handfast.pid
metrics: 127.0.0.1:9464
watch: true
user: www-data
group: ssl
chroot: empty
isolation: required
lifetime-timeout: 24h
limits: {connections: 9, connections-per-source: 8, handshake-rate-per-source: 7, handshakes: 6,
  source-prefix-v4: 24, source-prefix-v6: 56}
"""
    flat = config.parse(FLAT + common, base="/etc")
    full = config.parse(f"listeners: [{LISTENER}]\n{common}", base="/etc")

    assert msgspec.structs.replace(flat, listeners=()) == msgspec.structs.replace(
        full, listeners=()
    )
    assert (flat.pidfile, flat.watch) == ("/etc/handfast.pid", True)
    assert flat.metrics == config.TcpAddress(host="127.0.0.1", port=9464)
    assert flat.timeouts.lifetime == 86400
    assert flat.isolation == config.Isolation(
        user="www-data", group="ssl", chroot="/etc/empty", mode="required"
    )
    assert flat.limits == config.Limits(
        connections=9,
        connections_per_source=8,
        handshake_rate_per_source=7,
        handshakes=6,
        source_prefix_v4=24,
        source_prefix_v6=56,
    )


@pytest.mark.parametrize(
    ("written", "logfile"),
    [
        ("'-'", None),
        ("syslog", config.SYSLOG),
        ("journald", config.JOURNALD),
        ("./syslog", "/etc/./syslog"),
        ("a.log", "/etc/a.log"),
    ],
)
def test_some_logfiles_are_no_files(written: str, logfile: str | None) -> None:
    assert config.parse(f"{FLAT}logfile: {written}\n", base="/etc").logfile == logfile


def test_no_workers_means_as_many_as_cores() -> None:
    assert config.parse(FLAT, cores=7).nworkers == 7
    assert config.parse(FLAT + "nworkers: 0\n", cores=7).nworkers == 7
    assert config.parse(FLAT + "nworkers: 2\n", cores=7).nworkers == 2


@pytest.mark.parametrize(
    ("line", "claim"),
    [
        ("servcert: a", "line 7: servcert: cannot be used together with `cert-chain`"),
        ("cacerts: [a]", "line 7: cacerts: cannot be used together with `cert-chain`"),
        ("listen-prot: 1", "did you mean `listen-port`?"),
        ("target: tcp://a:1", "line 7: target: belongs in an entry of `listeners`"),
        ("nworkers: yes", "expected an integer from 0 to 1024, got the boolean yes"),
        ("nworkers: 0x10", "got the number 0x10"),
        ("listen-port: 1", "line 7: listen-port: given twice, first on line 2"),
        ("logfile:", "expected a file name, got nothing"),
        ("logfile: !x a", "a tag (!) is not allowed"),
        ("logfile: &x a", "an anchor (&) is not allowed"),
        ("logfile: *x", "an alias (*) is not allowed"),
        ('logfile: "\\0"', "a control character"),
        ('logfile: "\\UFFFFFFFF"', "out of range"),
        ("logfile: \udcff", "line 7: byte 0xff is not UTF-8"),
        ("logfile: \x01", "line 7: character U+0001"),
        ("loglevel: LOUD", "expected one of FATAL, ERROR, WARN, INFO, DEBUG, got the text 'LOUD'"),
        ("idle-timeout: 10", ""),
        ("idle-timeout: 10 s", "milliseconds, or text with a unit"),
        ("handshake-timeout: 0", "expected a time from 1ms"),
        ("watch: 1", "expected true or false, got the integer 1"),
        ("isolation: none", "expected one of preferred, required"),
        ("user: 65534", "expected text (put quotes around it), got the integer 65534"),
        ("metrics: 9464", "expected an address"),
        (
            "limits: {source-prefix-v4: 0}",
            "limits.source-prefix-v4: expected an integer from 1 to 32",
        ),
        ("limits: {conections: 1}", "limits.conections: unknown key; did you mean `connections`?"),
        ("routes: []", "belongs in an entry of `listeners`"),
        ("---\na: b", "line 7: a second document"),
        ("logfile: " + "[" * 50, "nested deeper than 20"),
        (f"listeners: [{LISTENER}]", "write `target: tcp://host:port` in a listener"),
    ],
)
def test_a_mistake_is_named(line: str, claim: str) -> None:
    if claim:
        assert claim in mistakes(FLAT + line)
    else:
        config.parse(FLAT + line)


def test_every_mistake_is_reported_in_the_order_of_lines() -> None:
    text = "listeners:\n- listen: 1\n  target: http://x\n- {}\nnworkers: -1\n"

    lines = [line.split(": ")[:2] for line in mistakes(text).splitlines()]

    assert lines == [
        ["line 2", "listeners[0].certificates"],
        ["line 2", "listeners[0].listen"],
        ["line 3", "listeners[0].target"],
        ["line 4", "listeners[1].listen"],
        ["line 4", "listeners[1].target"],
        ["line 4", "listeners[1].certificates"],
        ["line 5", "nworkers"],
    ]


def test_an_empty_file_is_told_what_to_write() -> None:
    assert "listeners:" in mistakes("")
    assert "listeners:" in mistakes("# nothing\n")


def test_two_listeners_may_not_share_an_address_unless_its_port_is_free() -> None:
    fixed = LISTENER.replace(":0'", ":443'")

    assert "same as that of listeners[0]" in mistakes(f"listeners: [{fixed}, {fixed}]")
    assert len(config.parse(f"listeners: [{LISTENER}, {LISTENER}]").listeners) == 2


@pytest.mark.parametrize(
    "value", ["*hunter22", "!hunter22", "!hunter22!x y", "@hunter22", "[hunter22]", "'hunter22\n'",
              "{hunter22: hunter22}", "12345678", "&hunter22 hunter22", '"hunter22\\q"',
              "%hunter22"]
)  # fmt: skip
def test_no_error_shows_a_password(value: str) -> None:
    for key in ("servkeypass", "servkeypass-env"):
        with pytest.raises(ConfigError) as caught:
            config.parse(f"{FLAT}{key}: {value}\nunknown: 1\n")
        assert "hunter22" not in str(caught.value)
        assert "12345678" not in str(caught.value)


@pytest.mark.parametrize("text", ["servkeypass:hunter22", "{servkeypass:hunter22}"])
def test_a_forgotten_space_does_not_show_the_password(text: str) -> None:
    assert "hunter22" not in mistakes(text)


def test_an_inline_password_is_hidden_everywhere() -> None:
    parsed = config.parse(FLAT + "servkeypass: hunter22\n")

    secret = parsed.listeners[0].certificates[0].key_password
    assert secret is not None
    assert secret.reveal() == "hunter22"
    assert "hunter22" not in repr(parsed) + str(secret) + config.effective(parsed)


def test_options_are_checked_like_yaml_and_named_as_options() -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_options("nowhere", None, "c", "k", loglevel="LOUD")

    problems = {problem.path for problem in caught.value.problems}
    assert problems == {"--listen", "--target", "--loglevel"}


def test_options_make_the_same_listener_as_yaml() -> None:
    parsed = config.from_options("127.0.0.1:0", "unix:/s", "c", "k")

    assert parsed == config.parse(f"listeners: [{LISTENER}]")
