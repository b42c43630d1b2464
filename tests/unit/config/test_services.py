"""Targets and routes, as the text says them."""

from __future__ import annotations

import pytest

from handfast import config
from handfast.errors import ConfigError

TEXT = """\
listeners:
- listen: ":0"
  certificates: [{chain: c, key: k}]
  alpn: [h2, http/1.1]
"""
DB = config.TcpAddress(host="db", port=1)


def parse(more: str) -> config.Listener:
    return config.parse(TEXT + more, base="/etc").listeners[0]


def routes(*entries: str) -> tuple[config.Route, ...]:
    return parse(f"  routes: [{', '.join(entries)}]").routes


def mistake(more: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(more)
    return str(caught.value)


def test_a_single_target_is_a_service_of_one() -> None:
    service = config.Service(targets=(config.Target(address=DB),))

    assert parse("  target: tcp://db:1").service == service
    assert parse("  targets: [tcp://db:1]").service == service


def test_a_target_may_be_spoken_to_over_tls() -> None:
    service = parse(
        "  targets:\n"
        "  - {address: tcp://db:1, tls: true, max-connections: 3}\n"
        "  - {address: tcp://db:1, tls: false}\n"
        "  - {address: unix:s, tls: {server-name: DB.internal., trusted-certs: [ca.pem]}}\n"
    ).service

    assert service is not None
    assert service.targets == (
        config.Target(address=DB, tls=config.TargetTls(), max_connections=3),
        config.Target(address=DB),
        config.Target(
            address=config.UnixAddress(path="/etc/s"),
            tls=config.TargetTls(server_name="db.internal", trusted_certs=("/etc/ca.pem",)),
        ),
    )


def test_a_route_takes_one_name_or_several() -> None:
    first, second = routes(
        "{sni: A.example, alpn: [h2, http/1.1], target: tcp://db:1}",
        "{sni: ['*.b.example', c], target: tcp://db:1, balance: least-connections, send-proxy: v2}",
    )

    target = (config.Target(address=DB),)
    assert first == config.Route(
        sni=("a.example",), alpn=("h2", "http/1.1"), service=config.Service(targets=target)
    )
    assert second.sni == ("*.b.example", "c")
    assert second.service == config.Service(
        targets=target, balance="least-connections", send_proxy="v2"
    )


def test_certificates_are_not_needed_when_every_client_speaks_with_its_target() -> None:
    text = "listeners: [{listen: ':0', routes: [{sni: a, passthrough: %s, target: 'tcp://h:1'}]%s}]"

    assert config.parse(text % ("true", "")).listeners[0].certificates == ()
    for more in (("no", ""), ("yes", ", target: 'tcp://h:1'")):
        with pytest.raises(ConfigError, match=r"listeners\[0\]\.certificates: is missing"):
            config.parse(text % more)


@pytest.mark.parametrize(
    ("more", "claim"),
    [
        ("", "listeners[0].target: is missing"),
        ("  target: tcp://h:1\n  targets: [tcp://h:2]", "cannot be used together with `target`"),
        ("  target: tcp://h:1\n  send-proxy: v3", "expected one of none, v1, v2"),
        ("  routes: [{sni: a, target: tcp://h:1}]\n  balance: round-robin", "no meaning without"),
        ("  target: {tls: true}", "target.address: is missing"),
        ("  target: {address: 'unix:/s', tls: true}", "target.tls.server-name: is missing"),
        ("  target: {address: tcp://h:1, tls: {ca: x}}", "unknown key; the keys are server-name"),
        ("  target: {address: tcp://h:1, max-connections: -1}", "expected an integer from 0"),
    ],
)
def test_a_wrong_service_is_named(more: str, claim: str) -> None:
    assert claim in mistake(more)


@pytest.mark.parametrize(
    ("route", "claim"),
    [
        ("{target: tcp://h:1}", "has neither `sni` nor `alpn`"),
        ("{passthrough: false, target: tcp://h:1}", "has neither `sni` nor `alpn`"),
        ("{sni: a}", "routes[0].target: is missing"),
        ("{sni: a, alpn: smtp, target: tcp://h:1}", "smtp is not in the `alpn` of its listener"),
        ("{passthrough: true, target: tcp://h:1}", "passthrough: needs `sni`"),
        ("{sni: a, alpn: h2, passthrough: true, target: tcp://h:1}", "alpn: is not negotiated by"),
        (
            "{sni: a, passthrough: true, targets: [{address: tcp://h:1, tls: true}]}",
            "passthrough: cannot be together with `tls` to the target",
        ),
    ],
)
def test_a_wrong_route_is_named(route: str, claim: str) -> None:
    assert claim in mistake(f"  routes: [{route}]")


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("sni: a.x", "sni: [b, A.x.]", "`sni` a.x"),
        ("sni: a.x", "sni: a.x, alpn: h2", "`sni` a.x"),
        ("sni: a.x, alpn: [h2, http/1.1]", "sni: a.x, alpn: h2", "`sni` a.x"),
        ("sni: '*.x'", "sni: a.x", "`sni` a.x"),
        ("sni: '*.x'", "sni: '*.x'", "`sni` *.x"),
        ("alpn: h2", "sni: a.x, alpn: h2", "`sni` a.x"),
        ("alpn: h2", "alpn: h2", "`alpn`"),
        ("sni: a.x, passthrough: true", "sni: a.x, alpn: h2", "`sni` a.x"),
    ],
)
def test_a_route_that_could_never_be_taken_is_a_mistake(first: str, second: str, name: str) -> None:
    entries = f"  routes: [{{{first}, target: tcp://h:1}}, {{{second}, target: tcp://h:2}}]"

    assert f"routes[1]: {name} is taken by listeners[0].routes[0] on line 5" in mistake(entries)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sni: a.x", "sni: '*.x'"),
        ("sni: '*.x'", "sni: a.b.x"),
        ("sni: '*.x'", "sni: x"),
        ("sni: a.x, alpn: h2", "sni: a.x, alpn: http/1.1"),
        ("sni: a.x, alpn: h2", "sni: a.x"),
        ("sni: a.x, passthrough: true", "alpn: h2"),
        ("sni: a.x, alpn: h2", "sni: a.x, passthrough: true"),
    ],
)
def test_a_narrower_route_may_come_before_a_wider_one(first: str, second: str) -> None:
    assert len(routes(f"{{{first}, target: tcp://h:1}}", f"{{{second}, target: tcp://h:2}}")) == 2


def test_networks_have_no_meaning_on_a_unix_socket() -> None:
    text = TEXT.replace('":0"', "unix:/s") + "  target: tcp://h:1\n  accept-proxy: [10.0.0.0/8]\n"

    with pytest.raises(ConfigError, match=r"accept-proxy: lists networks"):
        config.parse(text)
    assert parse("  target: tcp://h:1\n  accept-proxy: ['::1']").accept_proxy == ("::1/128",)
