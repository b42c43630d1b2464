"""How much is let in: each limit, the clean refusal, and what is told of it."""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from harness.clients import connect, echoes, read_to_end
from harness.homes import TIMEOUT
from harness.instance import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from features.conftest import Start, Targets
    from harness.front import Front


def is_served(
    front: Front, context: ssl.SSLContext, number: int = 0, source: str = "127.0.0.1"
) -> bool:
    """Tell whether a client comes through; one that is refused gets an alert, EOF or RST."""
    try:
        with connect(front.port(number), context, source=source) as client:
            return echoes(client)
    except (ssl.SSLError, ConnectionError, BrokenPipeError):
        return False


class Crowd:
    """Clients that stay connected."""

    def __init__(self, context: ssl.SSLContext, stack: ExitStack) -> None:
        self._context = context
        self._stack = stack
        self.clients: list[ssl.SSLSocket] = []

    def join(self, front: Front, number: int = 0, source: str = "127.0.0.1") -> None:
        client = connect(front.port(number), self._context, source=source)
        self.clients.append(self._stack.enter_context(client))
        assert echoes(client)

    def leave(self) -> None:
        self.clients.pop().unwrap().close()


@pytest.fixture
def crowd(context: ssl.SSLContext) -> Iterator[Crowd]:
    with ExitStack() as stack:
        yield Crowd(context, stack)


def test_one_connection_too_many_is_refused_and_told_with_the_limit(
    start: Start, targets: Targets, context: ssl.SSLContext, crowd: Crowd
) -> None:
    front = start({"target": targets.echo()}, nworkers=2, limits={"connections": 3})
    for _ in range(3):
        crowd.join(front)

    assert not is_served(front, context)

    told = front.wait("refused")
    assert (told["reason"], told["count"], told["level"]) == ("connections", "1", "WARN")
    assert (told["client_ip"], told["listen_port"]) == ("127.0.0.1", str(front.port()))
    assert all(echoes(each) for each in crowd.clients)


def test_a_refused_client_gets_an_alert(
    start: Start, targets: Targets, context: ssl.SSLContext, crowd: Crowd
) -> None:
    front = start({"target": targets.echo()}, limits={"connections": 1})
    crowd.join(front)

    with pytest.raises(ssl.SSLError, match=r"(?i)internal.error"):
        connect(front.port(), context)


def test_a_connection_that_ends_makes_room(
    start: Start, targets: Targets, context: ssl.SSLContext, crowd: Crowd
) -> None:
    front = start({"target": targets.echo()}, limits={"connections": 1})
    crowd.join(front)
    assert not is_served(front, context)

    crowd.leave()

    wait_for(lambda: is_served(front, context), "there is room again")


def test_refusals_are_counted(
    start: Start, targets: Targets, context: ssl.SSLContext, crowd: Crowd
) -> None:
    front = start({"target": targets.echo()}, limits={"connections": 1})
    crowd.join(front)

    for _ in range(5):
        assert not is_served(front, context)

    assert front.status()["refused"] == {"connections": 5}
    told = wait_for(lambda: front.events("refused"), "they are told")
    wait_for(lambda: sum(int(each["count"]) for each in front.events("refused")) == 5, "all")
    assert len(told) <= 2  # once a second, not once each
    assert not front.events("auth", outcome="denied") + front.events("auth", outcome="failed")


def test_a_refused_client_costs_no_handshake(
    start: Start, targets: Targets, context: ssl.SSLContext, crowd: Crowd
) -> None:
    front = start({"target": targets.echo()}, limits={"connections": 1})
    crowd.join(front)
    handshakes = front.status()["totals"].get("granted", 0)

    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        assert len(read_to_end(raw)) in {0, 7}  # EOF, or an alert; not waiting for a hello

    assert front.status()["totals"].get("granted", 0) == handshakes


def test_a_listener_that_is_full_leaves_the_others_alone(
    start: Start, targets: Targets, context: ssl.SSLContext, crowd: Crowd
) -> None:
    target = targets.echo()
    front = start({"target": target, "max_connections": 1}, {"target": target})
    crowd.join(front)

    assert not is_served(front, context)
    assert is_served(front, context, 1)

    told = front.wait("refused")
    assert (told["reason"], told["level"]) == ("listener_connections", "WARN")


def test_a_source_with_too_many_connections_leaves_the_others_alone(
    start: Start, targets: Targets, context: ssl.SSLContext, crowd: Crowd
) -> None:
    front = start({"target": targets.echo()}, limits={"connections-per-source": 2})
    for _ in range(2):
        crowd.join(front, source="127.0.0.7")

    assert not is_served(front, context, source="127.0.0.7")
    assert is_served(front, context, source="127.0.0.8")

    told = front.wait("refused")
    assert (told["reason"], told["level"]) == ("source_connections", "INFO")
    assert told["client_ip"] == "127.0.0.7"


def test_a_source_is_a_network_of_the_size_that_is_set(
    start: Start, targets: Targets, context: ssl.SSLContext, crowd: Crowd
) -> None:
    limits = {"connections-per-source": 1, "source-prefix-v4": 24}
    front = start({"target": targets.echo()}, limits=limits)
    crowd.join(front, source="127.0.7.1")

    assert not is_served(front, context, source="127.0.7.2")
    assert is_served(front, context, source="127.0.8.2")


def test_a_source_that_begins_too_many_handshakes_a_second_has_to_wait(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()}, limits={"handshake-rate-per-source": 3})

    served = [is_served(front, context, source="127.0.0.7") for _ in range(20)]

    # Of those that came within a second: how many seconds it took depends on the machine.
    assert served[:3] == [True] * 3
    assert not all(served)
    assert is_served(front, context, source="127.0.0.8")
    wait_for(lambda: is_served(front, context, source="127.0.0.7"), "its second is over")
    told = front.wait("refused")
    assert (told["reason"], told["client_ip"]) == ("source_rate", "127.0.0.7")


def test_handshakes_in_progress_are_limited(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()}, limits={"handshakes": 2})
    with ExitStack() as stack:
        for _ in range(2):
            raw = socket.create_connection(("127.0.0.1", front.port()), TIMEOUT)
            stack.enter_context(raw)
        wait_for(lambda: front.status()["handshaking"] == 2, "both were accepted")

        assert not is_served(front, context)

        told = front.wait("refused")
        assert (told["reason"], told["level"]) == ("handshakes", "WARN")

    wait_for(lambda: is_served(front, context), "there is room again")


def test_established_connections_are_no_handshakes(
    start: Start, targets: Targets, crowd: Crowd
) -> None:
    front = start({"target": targets.echo()}, limits={"handshakes": 1})

    for _ in range(4):
        wait_for(lambda: front.status()["handshaking"] == 0, "the one before is over")
        crowd.join(front)

    assert all(echoes(each) for each in crowd.clients)


def test_passed_through_connections_count(start: Start, targets: Targets, crowd: Crowd) -> None:
    route = {"sni": "inside.example", "passthrough": True, "target": targets.echo()}
    front = start({"target": targets.echo(), "routes": [route]}, limits={"connections": 1})
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="inside.example"
    )
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()

    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        assert echoes(raw, hello)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            crowd.join(front)

    assert front.wait("refused")["reason"] == "connections"


def test_a_limit_holds_over_a_reload(
    start: Start, targets: Targets, context: ssl.SSLContext, crowd: Crowd
) -> None:
    front = start({"target": targets.echo()}, limits={"connections": 2})
    for _ in range(2):
        crowd.join(front)

    front.reloaded()

    assert not is_served(front, context)
    crowd.leave()
    wait_for(lambda: is_served(front, context), "there is room again")
