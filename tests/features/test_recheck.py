"""After a reload: live connections that are no longer allowed end, and others stay."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from features.world import World, auth_of
from harness.clients import connect, echoes, trusting
from harness.pki import issue, revocation_list

if TYPE_CHECKING:
    from features.conftest import Start, Targets
    from harness.front import Front

Change = Callable[["Front", World], None]


def denies_bob(front: Front, world: World) -> None:
    front.listener["client-auth"]["rules"] = [{"deny": {"cn": "bob"}}, {"allow": "any"}]


def revokes_bob(front: Front, world: World) -> None:
    file = world.file("list.pem", revocation_list(world.root, world.bob))
    front.listener["client-auth"]["crls"] = [file]


def forgets_whom_it_allowed(front: Front, world: World) -> None:
    front.listener["client-auth"]["rules"] = [{"allow": {"cn": "alice"}}]


@pytest.mark.parametrize(
    ("change", "reason", "alert"),
    [
        (denies_bob, "rule_denied", "access_denied"),
        (revokes_bob, "certificate_revoked", "certificate_revoked"),
        (forgets_whom_it_allowed, "no_rule", "access_denied"),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_live_connection_that_is_no_longer_allowed_ends_within_a_second_and_others_stay(
    start: Start, targets: Targets, world: World, change: Change, reason: str, alert: str,
    version: ssl.TLSVersion,
) -> None:  # fmt: skip
    front = start({"target": targets.echo(), "client_auth": auth_of(world)}, nworkers=2)
    context = world.shows(world.bob)
    context.minimum_version = context.maximum_version = version
    with (
        connect(front.port(), world.shows(world.alice)) as alice,
        connect(front.port(), trusting(world.ca)) as nobody,
        connect(front.port(), context) as bob,
    ):
        assert all(echoes(each) for each in (alice, nobody, bob))

        change(front, world)
        assert front.reload().returncode == 0
        reloaded = time.monotonic()
        with pytest.raises(ssl.SSLError, match=f"(?i){alert}".replace("_", "[ _]")):
            bob.recv(1)

        assert time.monotonic() - reloaded < 1
        assert echoes(alice)
        assert echoes(nobody)

    denied = front.wait("auth", subevent="mtls", outcome="denied")
    assert (denied["reason"], denied["alert"]) == (reason, f"{alert} sent")
    assert denied["client_cert_subject"] == "CN=bob"
    front.wait("proxy", subevent="client_disconnect")
    events = front.events("proxy", subevent="client_disconnect")
    ended = next(each for each in events if each["client_port"] == denied["client_port"])
    assert ended["error_msg"].startswith("no longer allowed: ")
    front.wait("proxy", subevent="server_disconnect", client_port=denied["client_port"])


def test_live_clients_of_a_ca_that_is_no_longer_trusted_end(
    start: Start, targets: Targets, world: World
) -> None:
    front = start({"target": targets.echo(), "client_auth": auth_of(world)})
    with connect(front.port(), world.shows(world.bob)) as bob:
        assert echoes(bob)
        other = world.file("other.pem", issue("other root", ca=True).pem())
        front.reloaded(client_auth={"mode": "optional", "trusted-certs": [other]})
        with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
            bob.recv(1)

    assert front.wait("auth", outcome="denied")["reason"] == "untrusted"


def test_live_clients_without_a_certificate_end_when_one_is_required(
    start: Start, targets: Targets, world: World
) -> None:
    front = start({"target": targets.echo(), "client_auth": auth_of(world)})
    with (
        connect(front.port(), trusting(world.ca)) as nobody,
        connect(front.port(), world.shows(world.alice)) as alice,
    ):
        assert echoes(nobody)
        assert echoes(alice)
        front.reloaded(client_auth={**front.listener["client-auth"], "mode": "require"})
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            nobody.recv(1)
        assert echoes(alice)


def test_dozens_of_live_connections_are_held_against_the_new_rules(
    start: Start, targets: Targets, world: World
) -> None:
    front = start({"target": targets.echo(), "client_auth": auth_of(world)}, nworkers=2)
    people = [world.shows(world.alice), world.shows(world.bob)]
    clients = [connect(front.port(), people[number % 2]) for number in range(40)]
    try:
        assert all(echoes(each) for each in clients)
        assert front.lines  # they are read: a pipe that is full loses lines
        denies_bob(front, world)
        assert front.reload().returncode == 0
        front.wait("auth", 20, outcome="denied")
        assert all(echoes(each) for each in clients[::2])
        assert len(front.events("auth", outcome="denied")) == 20
    finally:
        for each in clients:
            each.close()
