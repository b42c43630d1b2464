"""Restarts by a service manager that stores descriptors: clients notice nothing."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conftest import Certificates
from features.conftest import Start, Targets
from features.world import World, auth_of
from harness.clients import connect, echoes, read_to_end, receive
from harness.front import Front
from harness.homes import TIMEOUT, sized
from harness.installation import Installation
from harness.instance import wait_for
from harness.manager import Manager, Stored
from harness.processes import descriptors
from harness.streams import memory_client, random_bytes, sha256

MEGABYTE = 1 << 20
PLENTY = 1000

Clients = Callable[..., ssl.SSLSocket]


class Service:
    """handfast as the service of a stand-in for systemd."""

    def __init__(self, manager: Manager, start: Start, stack: ExitStack) -> None:
        self.manager = manager
        self._start = start
        self._stack = stack
        self._python: Path | None = None

    def start(self, *listeners: dict[str, Any], **top: Any) -> Front:
        self._python = top.get("python")
        return self._start(*listeners, wrapper=self.manager.wrapper, **top)

    def again(self, front: Front) -> Front:
        """Start it once more, on the settings of one that has ended."""
        python = {"python": str(self._python)} if self._python else {}
        new = Front(front.config, front.settings, wrapper=self.manager.wrapper, **python)
        return self._stack.enter_context(new)

    def restart(self, front: Front) -> Front:
        """Do what `systemctl restart` does."""
        front.stop()
        return self.again(front)


Serve = Callable[..., Service]


@pytest.fixture
def service(start: Start, tmp_path: Path) -> Iterator[Serve]:
    """Make a manager: `service(1000)` has a store of so many descriptors."""
    with ExitStack() as outer, ExitStack() as inner:

        def make(most: int = PLENTY, *sockets: socket.socket) -> Service:
            manager = Manager(tmp_path, most, sockets)
            outer.callback(manager.close)
            return Service(manager, start, inner)

        yield make


@pytest.fixture
def clients(context: ssl.SSLContext) -> Iterator[Clients]:
    with ExitStack() as stack:

        def client(front: Front, **options: Any) -> ssl.SSLSocket:
            return stack.enter_context(connect(front.port(), context, **options))

        yield client


def restored(front: Front) -> dict[str, str]:
    """Wait until everything is back, and give what the log says of it."""
    return front.wait("restored")


# What clients see of it: nothing


def test_connections_survive_one_restart_after_the_other(
    service: Serve, targets: Targets, clients: Clients
) -> None:
    systemd = service()
    first = systemd.start({"target": targets.echo()}, nworkers=2)
    several = [clients(first) for _ in range(20)]
    assert all(echoes(each) for each in several)
    port = first.port()

    second = systemd.restart(first)
    back = restored(second)
    assert all(echoes(each) for each in several)
    several.append(clients(second))
    assert echoes(several[-1])
    third = systemd.restart(second)
    again = restored(third)

    assert all(echoes(each) for each in several)
    assert second.port() == third.port() == port
    assert (back["connections"], back["ended"]) == ("20", "0")
    assert (again["connections"], again["ended"]) == ("21", "0")
    stowed = first.wait("stowed")
    assert (stowed["connections"], stowed["ended"]) == ("20", "0")
    assert stowed["descriptors"] == "42"
    assert systemd.manager.names() == []
    assert third.status()["totals"]["relayed"] == 21
    assert third.status()["generation"] == 3


def test_a_transfer_that_a_restart_falls_into_arrives_unharmed(
    service: Serve, targets: Targets, certificates: Certificates
) -> None:
    data = random_bytes(sized(16 * MEGABYTE, 8))
    systemd = service()
    front = systemd.start({"target": targets.echo()}, nworkers=2)
    hashes: list[str] = []
    over = threading.Event()
    with memory_client(front.port(), certificates.ca) as client:

        def exchange() -> None:
            while not over.is_set():
                hashes.append(client.exchange(data, len(data)))

        exchanging = threading.Thread(target=exchange, daemon=True)
        exchanging.start()
        moved = []
        for _ in range(2):
            front = systemd.restart(front)
            moved.append(restored(front)["connections"])
        over.set()
        exchanging.join(60)

    assert moved == ["1", "1"]
    assert hashes
    assert set(hashes) == {sha256(data)}


def test_what_waits_for_a_client_that_does_not_read_is_there_afterwards(
    service: Serve, targets: Targets, clients: Clients
) -> None:
    data = random_bytes(sized(16 * MEGABYTE, 4))
    systemd = service()
    target = targets.run(lambda connection: connection.sendall(data)).target
    front = systemd.start({"target": target})
    client = clients(front)
    wait_for(lambda: front.status()["totals"]["bytes_out"] > MEGABYTE, "the target to be read")

    for _ in range(2):
        front = systemd.restart(front)
        assert restored(front)["connections"] == "1"

    assert sha256(receive(client, len(data) + 1)) == sha256(data)


def test_a_half_closed_connection_stays_half_closed(
    service: Serve, targets: Targets, clients: Clients
) -> None:
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        received.append(read_to_end(connection))

    target = targets.run(serve)
    systemd = service()
    front = systemd.start({"target": target.target})
    client = clients(front)
    assert receive(client, 3) == b"bye"
    assert client.recv(1) == b""

    front = systemd.restart(front)
    restored(front)
    client.sendall(b"one more thing")
    with client.unwrap():
        assert target.served.acquire(timeout=TIMEOUT)

    assert received == [b"one more thing"]


def test_what_a_client_said_before_it_closed_arrives(
    service: Serve, targets: Targets, clients: Clients
) -> None:
    """Its socket hangs up in the store, and is not thrown out for that."""
    received: list[bytes] = []
    asked, answer = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        received.append(connection.recv(5))
        asked.set()
        answer.wait(20)
        received.append(read_to_end(connection))

    target = targets.run(serve)
    systemd = service()
    front = systemd.start({"target": target.target})
    client = clients(front)
    client.sendall(b"hello")
    assert asked.wait(20)

    front.stop()
    client.sendall(b"and goodbye")
    client.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()
    client.close()
    front = systemd.again(front)
    restored(front)
    answer.set()

    assert target.served.acquire(timeout=TIMEOUT)
    assert received == [b"hello", b"and goodbye"]


def test_a_client_that_comes_between_two_programs_waits_and_is_served(
    service: Serve, targets: Targets, context: ssl.SSLContext
) -> None:
    systemd = service()
    front = systemd.start({"target": targets.echo()})
    port = front.port()
    front.stop()
    served: list[bool] = []

    def come() -> None:
        with connect(port, context) as client:
            served.append(echoes(client))

    coming = threading.Thread(target=come)
    with socket.create_connection(("127.0.0.1", port), 10):  # nobody is refused
        coming.start()
    systemd.again(front)
    coming.join(30)

    assert served == [True]


def test_a_client_in_its_handshake_is_let_in_and_stored(
    service: Serve, targets: Targets, context: ssl.SSLContext
) -> None:
    systemd = service()
    front = systemd.start({"target": targets.echo()})
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    with socket.create_connection(("127.0.0.1", front.port())) as sock:
        sock.settimeout(20)
        sock.sendall(hello[:100])
        wait_for(lambda: front.status()["handshaking"] == 1, "the hello to arrive")
        front.signal(signal.SIGTERM)
        front.wait("draining")
        sock.sendall(hello[100:])
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        tls.write(b"hello")
        sock.sendall(outgoing.read())
        assert front.wait("stowed")["connections"] == "1"
        front = systemd.restart(front)
        restored(front)

        data = b""
        while not data:
            incoming.write(sock.recv(65536))
            try:
                data = tls.read()
            except ssl.SSLWantReadError:
                continue

    assert data == b"hello"


# By the configuration as it is then


def test_a_client_whose_authority_was_removed_meanwhile_is_ended(
    service: Serve, targets: Targets, world: World, clients: Clients
) -> None:
    systemd = service()
    front = systemd.start({"target": targets.echo(), "client_auth": auth_of(world)})
    anonymous = clients(front)
    with connect(front.port(), world.shows(world.alice)) as alice:
        assert echoes(alice)
        assert echoes(anonymous)
        front.stop()
        other = world.file("others.pem", world.bob.pem())
        front.listener["client-auth"] = {"mode": "optional", "trusted-certs": [other]}

        front = systemd.again(front)

        assert restored(front)["connections"] == "2"
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            alice.recv(1)
        assert echoes(anonymous)


def test_a_listener_that_was_removed_meanwhile_is_closed_with_its_connections(
    service: Serve, targets: Targets, clients: Clients, context: ssl.SSLContext
) -> None:
    systemd = service()
    target = targets.echo()
    front = systemd.start({"target": target, "name": "one"}, {"target": target, "name": "two"})
    stays, port = clients(front), front.port(1)
    with connect(port, context) as goes:
        assert echoes(stays)
        assert echoes(goes)
        front.stop()
        del front.settings["listeners"][1]

        front = systemd.again(front)
        restored(front)

        with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
            goes.recv(1)
        assert echoes(stays)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_sockets_of_a_socket_unit_stay_the_managers(
    service: Serve, targets: Targets, clients: Clients
) -> None:
    given = socket.create_server(("127.0.0.1", 0))
    systemd = service(PLENTY, given)
    listen = f"127.0.0.1:{given.getsockname()[1]}"
    front = systemd.start({"target": targets.echo(), "listen": listen})
    client = clients(front)
    assert echoes(client)

    front.stop()
    assert systemd.manager.names().count("@listener") == 0
    front = systemd.again(front)
    restored(front)

    assert echoes(client)
    assert echoes(clients(front))


# When it cannot be done


def test_what_a_small_store_has_no_room_for_ends_and_the_log_says_what_would_do(
    service: Serve, targets: Targets, clients: Clients
) -> None:
    systemd = service(2 + 2 * 2)
    front = systemd.start({"target": targets.echo()}, nworkers=2, drain_timeout="1s")
    several = [clients(front) for _ in range(5)]
    assert all(echoes(each) for each in several)

    first, front = front, systemd.restart(front)

    assert would_do(first, 12)
    assert first.wait("stowed")["ended"] == "3"
    assert restored(front)["connections"] == "2"
    assert sum(answers(each) for each in several) == 2
    assert systemd.manager.refused == 0


def test_a_small_store_waits_for_connections_to_end(
    service: Serve, targets: Targets, clients: Clients
) -> None:
    systemd = service(2 + 2)
    front = systemd.start({"target": targets.echo()}, drain_timeout="20s")
    several = [clients(front) for _ in range(2)]
    assert all(echoes(each) for each in several)

    front.signal(signal.SIGTERM)
    front.wait("draining")
    assert echoes(several[0])
    wait_for(lambda: would_do(front, 6), "the log to say what would do")
    several[0].close()
    assert front.wait("stowed")["ended"] == "0"
    front = systemd.restart(front)

    assert restored(front)["connections"] == "1"
    assert echoes(several[1])


def would_do(front: Front, most: int) -> bool:
    text = f"FileDescriptorStoreMax={most} would do"
    return any(text in each["error_msg"] for each in front.events("config_warning"))


def answers(client: ssl.SSLSocket) -> bool:
    try:
        return echoes(client)
    except OSError:
        return False


def test_without_a_store_a_restart_drains(
    service: Serve, targets: Targets, clients: Clients
) -> None:
    systemd = service(0)
    front = systemd.start({"target": targets.echo()}, drain_timeout="1s")
    client = clients(front)
    assert echoes(client)

    front.stop()

    assert read_to_end(client) == b""
    assert systemd.manager.names() == []


@pytest.mark.parametrize("way", ["stop", "SIGINT"])
def test_the_stop_command_and_an_interrupt_drain_as_ever(
    service: Serve, targets: Targets, clients: Clients, way: str
) -> None:
    systemd = service()
    front = systemd.start({"target": targets.echo()}, drain_timeout="1s")
    client = clients(front)
    assert echoes(client)

    if way == "stop":
        assert front.command("stop").returncode == 0
    else:
        front.signal(signal.SIGINT)
        front.wait("stopped")

    assert read_to_end(client) == b""
    assert systemd.manager.names() == []


def test_a_manager_that_does_not_read_gets_nothing_and_connections_drain(
    service: Serve, targets: Targets, clients: Clients
) -> None:
    systemd = service()
    front = systemd.start({"target": targets.echo()}, drain_timeout="4s")
    client = clients(front)
    assert echoes(client)

    systemd.manager.stop_reading()
    front.signal(signal.SIGTERM)
    front.wait("system_error", error_msg="the service manager's store")
    assert echoes(client)
    front.wait("stopped")
    systemd.manager.go_on_reading()

    assert read_to_end(client) == b""
    assert not front.events("stowed")
    assert "@" not in systemd.manager.names()
    front = systemd.again(front)  # what it read too late is in nobody's way
    assert echoes(clients(front))
    assert systemd.manager.names() == []


def damaged(stored: Stored) -> int:
    """Give a copy of the state in which one byte of the manifest is another."""
    data = bytearray(os.pread(stored.descriptor, 1 << 24, 0))
    data[-20] ^= 0xFF
    copy = os.memfd_create("damaged", os.MFD_ALLOW_SEALING)
    os.write(copy, data)
    return copy


def test_a_damaged_state_is_told_and_handfast_starts_as_if_there_were_none(
    service: Serve, targets: Targets, clients: Clients
) -> None:
    systemd = service()
    front = systemd.start({"target": targets.echo(), "listen": f"127.0.0.1:{free_port()}"})
    client = clients(front)
    assert echoes(client)
    front.stop()
    state = next(each for each in systemd.manager.store if each.name == "@state")
    copy = damaged(state)
    os.dup2(copy, state.descriptor)
    os.close(copy)

    front = systemd.again(front)

    assert front.wait("system_error")["error_msg"] == "nothing of the store is used"
    assert read_to_end(client) == b""
    assert echoes(clients(front))
    assert systemd.manager.names() == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_a_program_that_does_not_come_up_leaves_the_store_for_the_next_try(
    service: Serve, targets: Targets, clients: Clients
) -> None:
    systemd = service()
    front = systemd.start({"target": targets.echo()})
    client = clients(front)
    assert echoes(client)
    front.stop()
    kept, good = systemd.manager.names(), front.listener["certificates"]
    front.listener["certificates"] = [{"chain": "/no/such/file", "key": "/no/such/file"}]
    with pytest.raises(AssertionError):
        systemd.again(front)
    assert systemd.manager.names() == kept

    front.listener["certificates"] = good
    front = systemd.again(front)
    restored(front)

    assert echoes(client)


def test_a_second_sigterm_ends_at_once(service: Serve, targets: Targets, clients: Clients) -> None:
    systemd = service(2)  # no room: the connection goes on until the end of `drain-timeout`
    front = systemd.start({"target": targets.echo()}, drain_timeout="60s")
    assert echoes(clients(front))
    front.signal(signal.SIGTERM)
    front.wait("config_warning")

    front.signal(signal.SIGTERM)

    front.wait("stopped")
    assert "@state" not in systemd.manager.names()


def test_a_unix_listener_keeps_its_name_even_when_a_start_fails(
    service: Serve, targets: Targets, context: ssl.SSLContext, tmp_path: Path
) -> None:
    path = tmp_path / "front.sock"
    systemd = service()
    front = systemd.start({"target": targets.echo(), "listen": f"unix:{path}"})
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        with context.wrap_socket(sock, server_hostname="localhost") as client:
            assert echoes(client)
            front.stop()
            good = front.listener["certificates"]
            front.listener["certificates"] = [{"chain": "/no/such", "key": "/no/such"}]
            with pytest.raises(AssertionError):
                systemd.again(front)
            front.listener["certificates"] = good
            with socket.socket(socket.AF_UNIX) as waiting:
                waiting.connect(str(path))

            restored(systemd.again(front))

            assert echoes(client)
    assert path.exists()


# What is left behind


def test_nothing_piles_up(service: Serve, targets: Targets, clients: Clients) -> None:
    systemd = service()
    front = systemd.start({"target": targets.echo()}, nworkers=2)
    several = [clients(front) for _ in range(3)]
    assert all(echoes(each) for each in several)
    before = None
    for _ in range(3):
        front = systemd.restart(front)
        restored(front)
        assert all(echoes(each) for each in several)
        now = descriptors(front.process.pid)
        assert before in (None, now)
        before = now

    for each in several:
        each.unwrap().close()
    wait_for(lambda: not sum(active(front)), "the connections to end")


def active(front: Front) -> list[int]:
    processes = front.status()["processes"]
    return [each["counters"].get("active", 0) for each in processes]


# Reloads


def test_a_reload_upgrades_and_the_manager_hears_of_it_from_the_same_process(
    service: Serve, targets: Targets, clients: Clients, tmp_path: Path
) -> None:
    installed = Installation(tmp_path / "venv", "1.0")
    systemd = service()
    front = systemd.start({"target": targets.echo()}, python=installed.python)
    client = clients(front)
    assert echoes(client)
    systemd.manager.wait_for("READY")

    installed.become("1.1")
    done = front.reload()

    assert done.returncode == 0, done.stderr
    systemd.manager.wait_for("READY", 2)
    told = [
        (pid, name)
        for pid, said in systemd.manager.events()
        for name in ("READY", "RELOADING", "STOPPING")
        if name in said
    ]
    pid = front.process.pid
    assert told[:3] == [(pid, "READY"), (pid, "RELOADING"), (pid, "READY")]
    assert systemd.manager.wait_for("RELOADING")[0]["MONOTONIC_USEC"].isdecimal()
    assert front.status()["version"] == "1.1"
    front = systemd.restart(front)  # the next program knows of the store, too
    assert restored(front)["connections"] == "1"
    assert echoes(client)
