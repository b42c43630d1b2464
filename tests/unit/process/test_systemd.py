from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from handfast.config import Address, TcpAddress, UnixAddress
from handfast.errors import HandfastError
from handfast.process.systemd import MOST_STORED, ServiceManager


class Manager:
    """systemd's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.settimeout(5)

    def heard(self) -> list[str]:
        return self.sock.recv(4096).decode().split("\n")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Manager, str]]:
    path = str(tmp_path / "notify")
    abstract = request.param == "abstract"
    manager = Manager("\0" + path if abstract else path)
    yield manager, "@" + path if abstract else path
    manager.sock.close()


def test_each_step_of_a_life_is_told(manager: tuple[Manager, str]) -> None:
    systemd, address = manager
    ours = ServiceManager({"NOTIFY_SOCKET": address})

    ours.ready("2 listeners")
    assert systemd.heard() == ["READY=1", "STATUS=2 listeners"]
    before = time.monotonic_ns() // 1000
    ours.reloading()
    state, moment = systemd.heard()
    assert state == "RELOADING=1"
    assert before <= int(moment.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    ours.ready()
    assert systemd.heard() == ["READY=1"]
    ours.status("draining")
    assert systemd.heard() == ["STATUS=draining"]
    ours.alive()
    assert systemd.heard() == ["WATCHDOG=1"]
    ours.stopping(30.5)
    assert systemd.heard() == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=35500000"]


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1234", "relative"])
def test_without_a_manager_nothing_happens(address: str) -> None:
    ours = ServiceManager({"NOTIFY_SOCKET": address})
    ours.ready()
    assert (ours.watchdog, ours.sockets) == (0.0, [])


def test_the_variables_are_gone_afterwards_and_no_others() -> None:
    environment = {
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": "1",
        "WATCHDOG_PID": "1",
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "LISTEN_FDNAMES": "https",
        "PATH": "/bin",
    }
    ServiceManager(environment)
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", "", 15.0),
        ("30000000", str(os.getpid()), 15.0),
        ("30000000", "1", 0.0),
        ("soon", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_a_sign_of_life_comes_twice_in_the_time_of_the_watchdog(
    usec: str, pid: str, seconds: float
) -> None:
    environment = {"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    assert ServiceManager(environment).watchdog == seconds


# What systemd does: sockets from descriptor 3 on, then exec in a process whose pid it has written.
_PASS = """
import os, sys
given, pid, report = sys.argv[1:]
os.dup2(int(given), 3)
os.environ |= {"LISTEN_PID": pid or str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, "-c", report])
"""
_REPORT = """
import os
from handfast.process.systemd import ServiceManager
for each in ServiceManager(os.environ).sockets:
    print(each.fileno(), each.getsockname()[:2], each.getblocking(), each.get_inheritable())
"""


def passed(sock: socket.socket, pid: str = "") -> str:
    return subprocess.run(
        [sys.executable, "-c", _PASS, str(sock.fileno()), pid, _REPORT],
        pass_fds=[sock.fileno()],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=30,
    ).stdout


def test_sockets_are_taken_from_descriptor_3_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert passed(sock) == f"3 {sock.getsockname()} False False\n"


def test_sockets_for_another_process_are_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert passed(sock, pid="1") == ""


def test_a_socket_that_does_not_listen_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        number = os.dup(sock.fileno())
        monkeypatch.setattr("handfast.process.systemd._FIRST", number)
        with pytest.raises(HandfastError, match="use ListenStream= with Accept=no"):
            ServiceManager({"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())})


def inheriting(sock: socket.socket) -> ServiceManager:
    ours = ServiceManager({})
    ours.sockets.append(sock)
    return ours


def local(port: int, host: str = "127.0.0.1") -> TcpAddress:
    return TcpAddress(host=host, port=port)


def test_a_socket_is_claimed_by_its_address_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        ours = inheriting(sock)
        assert ours.claim(local(port + 1)) is None
        assert ours.claim(local(port, "127.0.0.2")) is None
        assert ours.claim(local(port, "")) is None
        assert ours.claim(local(port, "no.such.host.invalid")) is None
        assert ours.claim(UnixAddress(path="/127.0.0.1")) is None
        assert ours.claim(local(port)) is sock
        assert ours.claim(local(port)) is None
        assert ours.sockets == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - what is tested
def test_a_socket_on_every_interface_is_claimed_by_an_address_without_host(host: str) -> None:
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as sock:
        port = sock.getsockname()[1]
        assert inheriting(sock).claim(local(port, "")) is sock
        assert inheriting(sock).claim(local(port, host)) is sock


def test_a_unix_socket_is_claimed_by_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    other: Address = UnixAddress(path=str(tmp_path / "other"))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        ours = inheriting(sock)
        assert ours.claim(other) is None
        assert ours.claim(UnixAddress(path=path)) is sock


# The store


def test_descriptors_go_to_the_store_by_name_and_are_forgotten_by_it(
    manager: tuple[Manager, str],
) -> None:
    systemd, address = manager
    ours = ServiceManager({"NOTIFY_SOCKET": address, "FDSTORE": "12"})
    one, other = os.pipe()

    assert ours.store("connection", [one, other])
    data, got, _, _ = socket.recv_fds(systemd.sock, 4096, 8)
    assert data == b"FDSTORE=1\nFDNAME=@connection\nFDPOLL=0"
    assert list(map(os.path.sameopenfile, got, [one, other])) == [True, True]
    assert ours.forget("connection")
    assert systemd.heard() == ["FDSTOREREMOVE=1", "FDNAME=@connection"]
    for each in (one, other, *got):
        os.close(each)
    assert ours.capacity == 12


def test_no_more_is_stored_than_there_is_room_for_in_the_variable_with_the_names() -> None:
    ours = ServiceManager({"NOTIFY_SOCKET": "/nowhere", "FDSTORE": "1000000"})
    assert ours.capacity == MOST_STORED
    assert len("LISTEN_FDNAMES=") + MOST_STORED * len("@:") < 128 * 1024 - 10_000


def test_a_barrier_hangs_up_when_the_manager_has_come_to_it(manager: tuple[Manager, str]) -> None:
    systemd, address = manager
    barrier = ServiceManager({"NOTIFY_SOCKET": address}).barrier()
    poll = select.poll()
    poll.register(barrier, 0)

    data, got, _, _ = socket.recv_fds(systemd.sock, 4096, 8)
    assert (data, len(got), poll.poll(0)) == (b"BARRIER=1", 1, [])
    os.close(got[0])

    assert poll.poll(5000) == [(barrier, select.POLLHUP)]
    os.close(barrier)


def test_without_a_manager_there_is_no_store_and_no_barrier() -> None:
    ours = ServiceManager({"FDSTORE": "12"})
    assert ours.capacity == 0
    assert not ours.store("connection", [0])
    assert not ours.forget("connection")
    with pytest.raises(HandfastError, match="does not read"):
        ours.barrier()


def test_the_store_is_known_to_the_program_that_follows() -> None:
    ours = ServiceManager({"NOTIFY_SOCKET": "/nowhere", "FDSTORE": "12"})
    assert ours.environment == {"NOTIFY_SOCKET": "/nowhere", "FDSTORE": "12"}


def test_what_comes_back_from_the_store_is_told_from_sockets_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        first = 300
        os.dup2(sock.fileno(), first)
        os.dup2(sock.fileno(), first + 1)
        os.dup2(sock.fileno(), first + 2)
        monkeypatch.setattr("handfast.process.systemd._FIRST", first)
        ours = ServiceManager(
            {
                "LISTEN_FDS": "3",
                "LISTEN_PID": str(os.getpid()),
                "LISTEN_FDNAMES": "https:@state",
            }
        )
        assert ours.stored == [("state", first + 1)]
        assert not os.get_inheritable(first + 1)
        assert [each.fileno() for each in ours.sockets] == [first, first + 2]
        os.close(first + 1)
        for each in ours.sockets:
            each.close()
