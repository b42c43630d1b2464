"""A whole handfast on a kernel that has TLS: clients, many of them, reloads, crashes, secrets."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.clients import connect, echoes, receive, trusting
from harness.homes import TIMEOUT
from harness.injection import memory_has
from harness.instance import wait_for
from harness.processes import kill_and_wait
from harness.secrets import connect_and_tell
from harness.streams import memory_client, random_bytes, sha256
from harness.terminal import Terminal

if TYPE_CHECKING:
    from conftest import Certificates, Serve
    from features.conftest import Start, Targets
    from handfast.transport.kernel import Support
    from harness.backends import Backend
    from harness.instance import Instance

MANY = 200


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    return trusting(certificates.ca)


def sessions(running: Instance) -> dict[str, int]:
    """Count the sessions by their transport, as the status tells them."""
    counts: dict[str, int] = {}
    for each in running.status()["gauges"]:
        if each["name"] == "sessions":
            home = each["labels"]["transport"]
            counts[home] = counts.get(home, 0) + int(each["value"])
    return counts


def test_the_start_loads_the_module_and_tells_what_the_kernel_can_do(
    serve: Serve, backend: Backend, support: Support
) -> None:
    """The kernel loads it for root only, and relays are none: so this is done before."""
    unload = ["modprobe", "-d", "/tmp/modules", "-r", "tls"]  # noqa: S108
    # The last sockets of other tests may still be on their way out.
    wait_for(lambda: subprocess.run(unload, check=False).returncode == 0, "the module is unloaded")
    running = serve(backend.target)

    told = running.wait("kernel_tls")
    ciphers = ("AES_128_GCM", "AES_256_GCM", "CHACHA20_POLY1305")
    every = {f"{version}-{cipher}" for version in ("1.2", "1.3") for cipher in ciphers}
    assert set(told["tx"].split(":")) == set(told["rx"].split(":")) == every
    assert told["rekey"] == str(support.rekey).lower()
    assert told["process_type"] == "master"


def test_two_hundred_connections_at_once_are_in_the_kernel_and_are_counted(
    serve: Serve, backend: Backend, context: ssl.SSLContext
) -> None:
    running = serve(backend.target, nworkers=1)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(running.port(), context)) for _ in range(MANY)]
        data = [random_bytes(20_000) for _ in clients]
        for client, each in zip(clients, data, strict=True):
            client.sendall(each)
        for client, each in zip(clients, data, strict=True):
            assert sha256(receive(client, len(each))) == sha256(each)

        assert sessions(running) == {"user": 0, "kernel": MANY, "kernel-tx": 0}
        text = running.command("status").stdout
        assert f"{MANY} kernel" in text
        counted = running.status()["kernel_tls"]
        assert counted["TlsCurrTxSw"] == counted["TlsCurrRxSw"] == MANY
        for client in clients:
            client.unwrap().close()
    wait_for(lambda: sessions(running)["kernel"] == 0, "all of them end")
    assert running.status()["kernel_tls"]["TlsDecryptError"] == 0


def test_the_metrics_have_what_the_kernel_counts(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    front = start({"target": targets.echo()}, metrics=address)
    with connect(front.port(), context) as client:
        assert echoes(client)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT) as answer:
            text = answer.read().decode()

    assert 'handfast_sessions{transport="kernel",process="relay-1"} 1' in text
    assert 'handfast_kernel_tls_sessions{direction="tx",mode="software"} 1' in text
    assert 'handfast_kernel_tls_sessions{direction="rx",mode="device"} 0' in text


def test_a_reload_leaves_connections_where_they_are(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo(), "kernel_tls": "on"})
    with connect(front.port(), context) as old:
        assert echoes(old)
        front.reloaded(kernel_tls="off")
        with connect(front.port(), context) as new:
            assert echoes(new)
            assert echoes(old, random_bytes(100_000))
            assert sessions(front) == {"user": 1, "kernel": 1, "kernel-tx": 0}
        old.unwrap().close()
        ended = front.wait("proxy", subevent="client_disconnect", transport="kernel")
    assert "error_msg" not in ended


def test_a_relay_that_is_killed_takes_its_connections_along_and_no_end_is_made_up(
    serve: Serve, backend: Backend, certificates: Certificates, context: ssl.SSLContext
) -> None:
    running = serve(backend.target, nworkers=1)
    with memory_client(running.port(), certificates.ca) as client:
        client.write(b"here")
        client.flush()
        assert client.read_exactly(4) == b"here"
        kill_and_wait(running.pids("relay")["relay-1"])

        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            client.read_exactly(1)  # a clean end would mean that this was all
    running.wait("worker", 2, worker_state="spawned", worker_id="relay-1")
    with connect(running.port(), context) as client:
        assert echoes(client)


def test_a_stop_ends_connections_in_order(
    serve: Serve, backend: Backend, certificates: Certificates
) -> None:
    running = serve(backend.target, extra="drain-timeout: 100ms")
    with memory_client(running.port(), certificates.ca) as client:
        client.write(b"here")
        client.flush()
        assert client.read_exactly(4) == b"here"
        running.process.send_signal(signal.SIGTERM)

        assert client.read() == b""  # close_notify


def test_a_connection_moves_when_it_has_carried_enough(
    serve: Serve, backend: Backend, context: ssl.SSLContext
) -> None:
    running = serve(backend.target, listener="    kernel-tls: on\n    kernel-tls-after: 100000")
    with connect(running.port(), context) as small, connect(running.port(), context) as large:
        assert echoes(small)
        assert echoes(large, random_bytes(60_000))
        assert sessions(running) == {"user": 1, "kernel": 1, "kernel-tx": 0}
        assert echoes(large, random_bytes(300_000))
        assert echoes(small)


@pytest.mark.parametrize("letter", ["K", "k"])
def test_a_key_update_of_openssl_is_followed_or_named(
    serve: Serve, backend: Backend, certificates: Certificates, support: Support, letter: str
) -> None:
    running = serve(backend.target)
    command = [
        *("openssl", "s_client", "-connect", f"127.0.0.1:{running.port()}", "-tls1_3", "-msg"),
        *("-servername", "localhost", "-CAfile", str(certificates.ca)),
    ]
    with Terminal(command) as client:
        client.enter("before the update")
        client.expect("before the update")
        client.enter(letter)
        client.expect("KEYUPDATE")
        if support.rekey:
            client.enter("after the update")
            client.expect("after the update")
        else:
            client.expect("fatal internal_error")
    end = running.wait("proxy", subevent="client_disconnect")
    if support.rekey:
        assert "error_msg" not in end
    else:
        assert end["error_msg"] == "a key update, which this kernel cannot follow"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("home", ["kernel", "user"])
def test_the_secrets_of_a_session_leave_the_memory_of_the_relay(
    serve: Serve, backend: Backend, version: str, home: str
) -> None:
    running = serve(
        backend.target,
        nworkers=1,
        listener=f"    kernel-tls: {'on' if home == 'kernel' else 'off'}",
    )
    with socket.create_connection(("127.0.0.1", running.port()), 20) as sock:
        sock.settimeout(None)
        client, told = connect_and_tell(sock, version)
        client.sendall(b"there and back")
        assert client.recv(100) == b"there and back"
        assert sessions(running)[home] == 1

        found = memory_has(running.pids("relay")["relay-1"], *told.secrets, *told.keys)

    if home == "kernel":
        assert found == set()
    else:
        assert found & set(told.secrets)  # else this would prove nothing


def test_this_is_the_guest_and_not_the_machine_that_runs_it() -> None:
    assert "UML" in Path("/proc/cpuinfo").read_text()
