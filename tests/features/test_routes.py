"""Where a listener's clients go: by the name that they ask for, and by protocol."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from harness.clients import connect, read_to_end
from harness.homes import TIMEOUT

if TYPE_CHECKING:
    from features.conftest import Start, Targets
    from harness.front import Front


def said_to(front: Front, context: ssl.SSLContext, name: str = "localhost", alpn: str = "") -> str:
    """Give what the target says that a client comes to."""
    if alpn:
        context.set_alpn_protocols([alpn])
    with connect(front.port(), context, name=name) as client:
        return read_to_end(client).decode()


def routed(targets: Targets) -> dict[str, Any]:
    """Give a listener with three routes and a target of its own."""
    return {
        "target": targets.says("default"),
        "routes": [
            {"sni": "api.example.com", "target": targets.says("api")},
            {"sni": ["*.example.com", "example.org"], "target": targets.says("wild")},
            {"sni": "bücher.example", "target": targets.says("books")},
        ],
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("api.example.com", "api"),
        ("www.example.com", "wild"),
        ("example.org", "wild"),
        ("example.com", "default"),
        ("a.b.example.com", "default"),
        ("xn--bcher-kva.example", "books"),
        ("localhost", "default"),
        ("127.0.0.1", "default"),
    ],
)
def test_the_first_route_that_has_the_name_is_taken(
    start: Start, targets: Targets, nameless: ssl.SSLContext, name: str, expected: str
) -> None:
    front = start(routed(targets))

    assert said_to(front, nameless, name) == expected


@pytest.mark.parametrize("name", ["API.Example.COM", "api.example.com."])
def test_case_and_a_final_dot_of_a_name_make_no_difference(
    start: Start, targets: Targets, name: str
) -> None:
    front = start(routed(targets))

    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{front.port()}", "-quiet"]
    done = subprocess.run(
        [*command, "-servername", name],
        input=b"",
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )

    assert done.stdout == b"api"


def by_protocol(targets: Targets) -> dict[str, Any]:
    """Give a listener that goes by protocol, and by both."""
    return {
        "alpn": ["h2", "http/1.1", "smtp"],
        "target": targets.says("default"),
        "routes": [
            {"sni": "api.example.com", "alpn": "h2", "target": targets.says("api h2")},
            {"alpn": ["h2", "http/1.1"], "target": targets.says("web")},
        ],
    }


@pytest.mark.parametrize(
    ("name", "alpn", "expected"),
    [
        ("api.example.com", "h2", "api h2"),
        ("api.example.com", "http/1.1", "web"),
        ("api.example.com", "smtp", "default"),
        ("api.example.com", "", "default"),
        ("www.example.com", "h2", "web"),
    ],
)
def test_a_route_with_name_and_protocol_needs_both(
    start: Start, targets: Targets, nameless: ssl.SSLContext, name: str, alpn: str, expected: str
) -> None:
    front = start(by_protocol(targets))

    assert said_to(front, nameless, name, alpn) == expected


def test_curl_comes_to_the_target_of_its_protocol(start: Start, targets: Targets) -> None:
    front = start(by_protocol(targets))

    command = ["curl", "-sk", "--http0.9", f"https://localhost:{front.port()}/"]
    done = subprocess.run(
        [*command, "--http1.1"], capture_output=True, timeout=TIMEOUT, check=False
    )

    assert done.stdout == b"web"
    assert front.wait("auth", outcome="granted")["alpn"] == "http/1.1"


def test_a_client_without_a_common_protocol_is_denied(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start(by_protocol(targets))

    with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
        said_to(front, context, alpn="imap")

    assert front.wait("auth", outcome="denied")["reason"] == "no_application_protocol"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_of_no_route_is_refused_where_there_is_no_other_target(
    start: Start, targets: Targets, nameless: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    front = start({"routes": [{"sni": "api.example.com", "target": targets.says("api")}]})
    nameless.minimum_version = nameless.maximum_version = version

    assert said_to(front, nameless, "api.example.com") == "api"
    with (
        connect(front.port(), nameless, name="www.example.com") as client,
        pytest.raises(ssl.SSLError, match=r"(?i)access.denied"),
    ):
        client.recv(1)

    ended = front.wait("proxy", 2, subevent="client_disconnect")
    assert ended["error_msg"] == "no target for this name"


def test_two_listeners_have_routes_of_their_own(
    start: Start, targets: Targets, nameless: ssl.SSLContext
) -> None:
    target = targets.says("default")
    route = {"sni": "api.example.com", "target": targets.says("api")}
    front = start({"target": target, "routes": [route]}, {"target": target})

    with connect(front.port(1), nameless, name="api.example.com") as client:
        assert read_to_end(client) == b"default"
