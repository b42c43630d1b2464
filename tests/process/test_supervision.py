"""The processes: who is replaced when it dies, who survives whom, and how it all ends."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.clients import connect, echoes, read_to_end, receive, trusting
from harness.instance import Instance, wait_for
from harness.processes import Watched, kill_and_wait, title

if TYPE_CHECKING:
    from conftest import Certificates, Serve
    from harness.backends import Backend


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    return trusting(certificates.ca)


def control_of(running: Instance) -> Path:
    number = running.config.stem.removeprefix("handfast-")
    return running.config.with_name(f"control-{number}.sock")


def active(running: Instance) -> dict[str, int]:
    """Count the connections of each relay."""
    return {
        each["name"]: each["counters"].get("active", 0)
        for each in running.status()["processes"]
        if each["name"].startswith("relay")
    }


def spread(running: Instance, context: ssl.SSLContext) -> list[ssl.SSLSocket]:
    """Open connections until each relay has at least one."""
    clients: list[ssl.SSLSocket] = []

    def all_busy() -> bool:
        clients.append(connect(running.port(), context))
        assert echoes(clients[-1])
        return all(active(running).values())

    wait_for(all_busy, "a connection at each relay")
    return clients


def refused(port: int) -> bool:
    """Tell whether nobody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_each_process_carries_its_title(serve: Serve, backend: Backend) -> None:
    running = serve(backend.named)

    titles = {name: title(pid) for name, pid in running.pids().items()}

    assert titles == {
        "supervisor": "handfast: supervisor",
        "resolver": "handfast: resolver",
        "template": "handfast: template",
        "acceptor-1": "handfast: acceptor 1",
        "acceptor-2": "handfast: acceptor 2",
        "relay-1": "handfast: relay 1",
        "relay-2": "handfast: relay 2",
    }


def test_a_killed_relay_takes_only_its_own_connections_and_is_replaced(
    serve: Serve, backend: Backend, context: ssl.SSLContext
) -> None:
    running = serve(backend.target)
    clients = spread(running, context)
    lost = active(running)["relay-1"]
    victim = running.pids()["relay-1"]

    kill_and_wait(victim)

    dead = running.wait("worker", worker_state="dead", worker_id="relay-1")
    assert (dead["worker_pid"], dead["level"]) == (str(victim), "ERROR")
    assert dead["error_msg"] == "killed by signal 9 (Killed)"
    running.wait("worker", 2, worker_state="spawned", worker_id="relay-1")
    survivors = 0
    for client in clients:
        try:
            survivors += echoes(client)
        except OSError:
            pass  # of the dead relay: what the kernel says depends on the moment
        client.close()
    assert survivors == len(clients) - lost
    for fresh in spread(running, context):
        fresh.close()


def test_a_killed_acceptor_is_replaced_while_connections_go_on_and_its_tickets_resume(
    serve: Serve, backend: Backend, context: ssl.SSLContext
) -> None:
    running = serve(backend.target)
    client = connect(running.port(), context)
    assert echoes(client)
    ticket = client.session

    for number in (1, 2):
        kill_and_wait(running.pids()[f"acceptor-{number}"])
        running.wait("worker", 2, worker_state="spawned", worker_id=f"acceptor-{number}")

    assert echoes(client)
    resumed = connect(running.port(), context, ticket)
    assert echoes(resumed)
    assert resumed.session_reused
    running.wait("auth", outcome="granted", resumed="true")
    client.close()
    resumed.close()


def test_a_killed_template_is_replaced_with_its_acceptors_while_connections_go_on(
    serve: Serve, backend: Backend, context: ssl.SSLContext
) -> None:
    running = serve(backend.target)
    client = connect(running.port(), context)
    assert echoes(client)
    before = running.pids()
    acceptors = Watched(before["acceptor-1"], before["acceptor-2"])

    kill_and_wait(before["template"])

    acceptors.wait()
    for name in ("template", "acceptor-1", "acceptor-2"):
        running.wait("worker", worker_state="dead", worker_id=name)
        running.wait("worker", 2, worker_state="spawned", worker_id=name)
    assert echoes(client)
    with connect(running.port(), context) as fresh:
        assert echoes(fresh)
    client.close()


@pytest.mark.parametrize("name", ["relay-1", "acceptor-1"])
def test_a_process_that_keeps_dying_is_replaced_ever_more_slowly(
    serve: Serve, backend: Backend, name: str
) -> None:
    running = serve(backend.target, nworkers=1)
    deaths = 5

    for death in range(1, deaths + 1):
        spawned = running.wait("worker", death, worker_state="spawned", worker_id=name)
        kill_and_wait(int(spawned["worker_pid"]))
    running.wait("worker", deaths + 1, worker_state="spawned", worker_id=name)

    pauses = [b - a for a, b in zip(times(running, name, "dead"),
                                    times(running, name, "spawned")[1:], strict=True)]  # fmt: skip
    assert pauses[0] < pauses[-1]  # the first time at once
    assert all(
        pause >= least for pause, least in zip(pauses[1:], (0.1, 0.2, 0.4, 0.8), strict=True)
    )


def times(running: Instance, name: str, state: str) -> list[float]:
    """When a process came or went, in seconds of the day."""
    found = []
    for each in running.events("worker", worker_state=state, worker_id=name):
        hours, minutes, seconds = each["timestamp"][11:23].split(":")
        found.append(int(hours) * 3600 + int(minutes) * 60 + float(seconds))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_established_connections_finish_and_new_ones_are_refused(
    serve: Serve, backend: Backend, context: ssl.SSLContext, number: signal.Signals
) -> None:
    running = serve(backend.target)
    port = running.port()
    client = connect(port, context)
    assert echoes(client)

    running.process.send_signal(number)
    running.wait("draining")
    wait_for(lambda: refused(port), "new connections are refused")

    assert echoes(client, b"x" * 100_000)
    assert running.process.poll() is None
    client.unwrap().close()
    assert running.process.wait(10) == 0
    received = running.events("signal_received")[0]
    assert (received["signal_num"], received["recvd_from"]) == (str(int(number)), str(os.getpid()))
    assert running.events()[-1]["event"] == "stopped"


def test_new_connections_are_refused_while_a_handshake_in_progress_is_waited_for(
    serve: Serve, backend: Backend, context: ssl.SSLContext
) -> None:
    running = serve(backend.target)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    raw = socket.create_connection(("127.0.0.1", running.port()), 10)
    raw.sendall(outgoing.read())
    incoming.write(raw.recv(16384))
    port = running.port()

    running.process.send_signal(signal.SIGTERM)
    running.wait("draining")
    wait_for(lambda: refused(port), "new connections are refused")

    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            incoming.write(raw.recv(16384))
    client.write(b"still served")
    raw.sendall(outgoing.read())
    answer = b""
    while not answer:
        data = raw.recv(16384)
        assert data, running.lines
        incoming.write(data)
        try:
            answer = client.read(100)
        except ssl.SSLWantReadError:
            continue
    assert answer == b"still served"
    raw.close()
    assert running.process.wait(10) == 0


def test_a_second_signal_ends_it_at_once(
    serve: Serve, backend: Backend, context: ssl.SSLContext
) -> None:
    running = serve(backend.target, extra="drain-timeout: 1h")
    client = connect(running.port(), context)
    assert echoes(client)
    watched = Watched(*running.pids().values())

    running.process.send_signal(signal.SIGTERM)
    running.wait("draining")
    running.process.send_signal(signal.SIGTERM)

    watched.wait(5)
    assert running.process.wait(5) == 0
    client.close()


def test_the_drain_deadline_ends_what_is_left_in_order(
    serve: Serve, backend: Backend, context: ssl.SSLContext
) -> None:
    running = serve(backend.target, extra="drain-timeout: 300ms")
    client = connect(running.port(), context)
    assert echoes(client)

    running.process.send_signal(signal.SIGTERM)

    assert read_to_end(client) == b""  # close_notify: a bare FIN would raise
    assert running.process.wait(10) == 0
    end = running.wait("proxy", subevent="client_disconnect")
    assert end["error_msg"] == "handfast is stopping"
    client.close()


def test_a_handshake_that_stalls_does_not_outlive_the_drain_deadline(
    serve: Serve, backend: Backend
) -> None:
    running = serve(backend.target, extra="drain-timeout: 300ms\nhandshake-timeout: 1h")
    watched = Watched(*running.pids().values())
    with socket.create_connection(("127.0.0.1", running.port()), 10) as raw:
        raw.sendall(b"\x16\x03\x01")
        wait_for(lambda: running.status()["totals"]["accepted"], "the connection was accepted")

        running.process.send_signal(signal.SIGTERM)

        assert running.process.wait(10) == 0
        watched.wait(1)


def test_no_process_is_left_when_the_supervisor_is_killed(
    serve: Serve, backend: Backend, context: ssl.SSLContext, tmp_path: Path
) -> None:
    config = serve(backend.target).config
    own = config.with_name("killed.yaml")
    own.write_text(config.read_text().replace("control-1", "control-killed"))
    running = Instance(own)
    running.wait("listening")
    client = connect(running.port(), context)
    assert echoes(client)
    watched = Watched(*running.pids().values())

    running.kill()

    watched.wait(5)
    client.close()


def test_the_socket_of_a_killed_instance_does_not_stop_the_next_one(
    serve: Serve, backend: Backend
) -> None:
    config = serve(backend.target).config
    own = config.with_name("killed.yaml")
    own.write_text(config.read_text().replace("control-1", "control-killed"))
    killed = Instance(own)
    killed.wait("listening")
    killed.kill()
    assert config.with_name("control-killed.sock").is_socket()

    with Instance(own) as running:
        assert running.status()["state"] == "serving"


def test_the_control_socket_is_its_owners_alone_and_goes_with_the_end(
    serve: Serve, backend: Backend
) -> None:
    running = serve(backend.target, nworkers=1)
    path = control_of(running)

    mode = stat.S_IMODE(path.stat().st_mode)
    running.command("stop")

    assert mode == 0o600
    assert not path.exists()


HOSTILE = {
    "garbage": b"\x00\xff" * 100 + b"\n",
    "a megabyte": b"x" * (1 << 20),
    "a megabyte of lines": b"{}\n" * (1 << 18),
    "half a line": b'{"command": "st',
    "nothing": b"",
    "not an object": b"[]\n",
    "deep": b"[" * 4000 + b"\n",
    "an unknown command": b'{"command": "halt"}\n',
    "an unknown field": b'{"command": "stop", "force": true}\n',
    "not UTF-8": b'{"command": "\xff\xfe"}\n',
}


def test_what_is_no_request_on_the_control_socket_harms_nothing(
    serve: Serve, backend: Backend, context: ssl.SSLContext
) -> None:
    running = serve(backend.target, nworkers=1)
    client = connect(running.port(), context)
    silent = [socket.socket(socket.AF_UNIX) for _ in range(8)]
    for each in silent:
        each.connect(str(control_of(running)))

    for name, data in HOSTILE.items():
        with socket.socket(socket.AF_UNIX) as hostile:
            hostile.settimeout(10)
            hostile.connect(str(control_of(running)))
            try:
                hostile.sendall(data)
                hostile.shutdown(socket.SHUT_WR)
                answer = read_to_end(hostile)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""  # it was closed before all was sent
        assert answer == b"" or answer.startswith(b'{"error":'), name

    assert echoes(client)
    assert running.status()["state"] == "serving"
    assert not running.events("system_error")
    for each in silent:
        each.close()
    client.close()


def test_a_flood_of_silent_control_connections_does_not_lock_the_owner_out_for_long(
    serve: Serve, backend: Backend
) -> None:
    running = serve(backend.target, nworkers=1)
    silent = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for each in silent:
        each.connect(str(control_of(running)))  # waits for room in the backlog
        each.settimeout(10)

    assert receive(silent[0], 1) == b""  # it was silent for too long

    assert running.status()["state"] == "serving"
    for each in silent:
        each.close()
