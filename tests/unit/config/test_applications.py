"""Targets that take sessions, as the text says them."""

from __future__ import annotations

import pytest

from handfast import config
from handfast.errors import ConfigError

TEXT = """\
listeners:
- listen: ":0"
  certificates: [{chain: c, key: k}]
"""


def parse(more: str) -> config.Listener:
    return config.parse(TEXT + more, base="/etc").listeners[0]


def mistake(more: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(more)
    return str(caught.value)


def test_an_application_is_a_target_with_or_without_its_user() -> None:
    service = parse(
        "  targets:\n"
        "  - handoff:/run/a.sock\n"
        "  - {address: handoff:b.sock, user: shop}\n"
        "  - {address: handoff:c.sock, tls: false, max-connections: 0}\n"
        "  - tcp://db:1\n"
        "  balance: least-connections\n"
    ).service

    assert service is not None
    assert [each.address for each in service.targets] == [
        config.HandoffAddress(path="/run/a.sock"),
        config.HandoffAddress(path="/etc/b.sock", user="shop"),
        config.HandoffAddress(path="/etc/c.sock"),
        config.TcpAddress(host="db", port=1),
    ]
    assert str(service) == "handoff:/run/a.sock handoff:/etc/b.sock handoff:/etc/c.sock db:1"


@pytest.mark.parametrize("target", ['"handoff:"', '"handoff:a\\tb"', "handoff:" + "x" * 120])
def test_a_path_that_cannot_be_a_sockets_is_refused(target: str) -> None:
    assert mistake(f"  target: {target}").startswith("line 4: listeners[0].target: ")


NO_HEADER = "is not for a target handoff:/path, whose message says who the client is; remove it"
REFUSED = {
    "targets: [{address: 'handoff:/a', tls: {server-name: a}}]": (
        ".targets[0].tls: is between the client and the application itself, which gets the "
        "session; remove it"
    ),
    "targets: [{address: 'handoff:/a', max-connections: 3}]": (
        ".targets[0].max-connections: is for connections that handfast carries; the application "
        "has its own; remove it"
    ),
    "targets: [{address: 'unix:/a', user: shop}]": (
        ".targets[0].user: is whose application sessions go to, at a target handoff:/path; "
        "remove it"
    ),
    "targets: ['tcp://db:1', 'handoff:/a']\n  send-proxy: v2": f".send-proxy: {NO_HEADER}",
    "routes: [{sni: a, target: 'handoff:/a', send-proxy: v1}]": (
        f".routes[0].send-proxy: {NO_HEADER}"
    ),
    "routes: [{sni: a, passthrough: true, target: 'handoff:/a'}]": (
        ".routes[0].passthrough: has no session that could go to a target handoff:/path; remove "
        "`passthrough`, or name another target"
    ),
}


@pytest.mark.parametrize("more", REFUSED)
def test_what_has_no_meaning_with_an_application_is_refused(more: str) -> None:
    _, _, found = mistake(f"  {more}\n").partition("listeners[0]")

    assert found == REFUSED[more]


def test_the_effective_configuration_reads_back_the_same() -> None:
    text = TEXT + "  targets: [handoff:/a, {address: 'handoff:/b', user: '1000'}, unix:/c]\n"
    parsed = config.parse(text, base="/etc")

    shown = config.effective(parsed)

    assert config.parse(shown, base="") == parsed
    assert "handoff:/a" in shown
