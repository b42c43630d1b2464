"""Targets by name: looked up outside the sandbox, and followed when they move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.clients import connect, echoes, read_to_end
from harness.instance import wait_for

if TYPE_CHECKING:
    import socket
    import ssl
    from pathlib import Path

    from features.conftest import Start, Targets
    from harness.front import Front


def greeting(front: Front, context: ssl.SSLContext) -> str:
    with connect(front.port(), context) as client:
        return read_to_end(client).decode()


def test_a_name_is_looked_up_though_relays_are_in_a_chroot(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": f"tcp://localhost:{targets.run().port}"})

    with connect(front.port(), context) as client:
        assert echoes(client)


def with_hosts(hosts: Path) -> tuple[str, ...]:
    """Give the command that starts handfast with another /etc/hosts, which no one else sees."""
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, str(hosts))


def two_places(targets: Targets) -> int:
    """Run two targets on one port of different addresses; give the port."""

    def say_where(connection: socket.socket) -> None:
        connection.sendall(connection.getsockname()[0].encode())

    port = targets.run(say_where, address=("127.0.0.2", 0)).port
    targets.run(say_where, address=("127.0.0.3", port))
    return port


def test_a_name_that_moves_is_followed_without_a_reload(
    start: Start, targets: Targets, context: ssl.SSLContext, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.0.0.2 moving.test\n")
    port = two_places(targets)
    front = start({"target": f"tcp://moving.test:{port}"}, wrapper=with_hosts(hosts))
    assert greeting(front, context) == "127.0.0.2"

    hosts.write_text("127.0.0.1 localhost\n127.0.0.3 moving.test\n")

    wait_for(lambda: greeting(front, context) == "127.0.0.3", "the name is looked up again")
    assert not front.events("reload")


def test_all_addresses_of_a_name_are_tried(
    start: Start, targets: Targets, context: ssl.SSLContext, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.0.0.9 two.test\n127.0.0.1 two.test\n")
    front = start({"target": f"tcp://two.test:{targets.run().port}"}, wrapper=with_hosts(hosts))

    with connect(front.port(), context) as client:
        assert echoes(client)

    assert front.wait("proxy", subevent="server_connect")["server_ip"] == "127.0.0.1"


def test_a_reload_may_name_a_target_that_was_not_there_at_the_start(
    start: Start, targets: Targets, context: ssl.SSLContext, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost new.test\n")
    front = start({"target": targets.says("old")}, wrapper=with_hosts(hosts))
    address = targets.says("new").replace("127.0.0.1", "new.test")

    front.reloaded(target=address)

    assert greeting(front, context) == "new"
