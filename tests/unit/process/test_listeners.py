from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from conftest import Certificates
from handfast.config import Address, Config, TcpAddress, UnixAddress
from handfast.errors import HandfastError
from handfast.process.listeners import Listeners
from unit.process.household import LOCAL, config_of, listener_of


class Manager:
    """A service manager that has opened sockets, and keeps its own copies."""

    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}
        self.copies: list[socket.socket] = []

    def open(self, address: Address) -> Address:
        family = socket.AF_UNIX if isinstance(address, UnixAddress) else socket.AF_INET
        sock = socket.socket(family)
        sock.bind(address.path if isinstance(address, UnixAddress) else (address.host, 0))
        sock.listen()
        self.copies.append(sock.dup())
        if isinstance(address, TcpAddress):
            address = TcpAddress(host=LOCAL, port=sock.getsockname()[1])
        self.sockets[str(address)] = sock
        return address

    def claim(self, address: Address) -> socket.socket | None:
        return self.sockets.pop(str(address), None)

    def close(self) -> None:
        for sock in (*self.sockets.values(), *self.copies):
            sock.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    made = Manager()
    yield made
    made.close()


@pytest.fixture
def listeners(manager: Manager) -> Iterator[Listeners]:
    made = Listeners(manager.claim)
    yield made
    made.close()


def config(certificates: Certificates, **addresses: Address | None) -> Config:
    found = (listener_of(certificates, name, each) for name, each in addresses.items())
    return config_of(certificates, *found)


def answers(ip: str, port: int) -> bool:
    try:
        socket.create_connection((ip, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


def unix_answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path would be one more object


def test_a_listener_keeps_its_socket_and_its_number(
    listeners: Listeners, certificates: Certificates
) -> None:
    (before,) = listeners.open(config(certificates, a=None))
    changed = replace(listener_of(certificates, "a"), alpn=("h2",))

    (after,) = listeners.open(config_of(certificates, changed))

    assert after.sock is before.sock
    assert after.number == before.number
    assert after.listener.alpn == ("h2",)


def test_a_listener_is_added_and_another_removed(
    listeners: Listeners, certificates: Certificates
) -> None:
    a, b = listeners.open(config(certificates, a=None, b=None))
    new = listeners.open(config(certificates, b=None, c=None))
    assert answers(a.ip, a.port)

    listeners.keep(new)

    assert new[0].sock is b.sock
    assert [each.number for each in new] == [1, 2]
    assert not answers(a.ip, a.port)
    assert answers(new[1].ip, new[1].port)


def test_a_number_is_never_used_again(listeners: Listeners, certificates: Certificates) -> None:
    (first,) = listeners.open(config(certificates, a=None))
    listeners.keep()

    (second,) = listeners.open(config(certificates, a=None))

    assert second.number != first.number


def test_listeners_of_one_name_on_any_port_are_told_apart(
    listeners: Listeners, certificates: Certificates
) -> None:
    twice = config_of(certificates, listener_of(certificates), listener_of(certificates))

    first, second = listeners.open(twice)
    again = listeners.open(twice)

    assert first.port != second.port
    assert [each.sock for each in again] == [first.sock, second.sock]


def test_sockets_of_two_generations_stay_while_both_serve(
    listeners: Listeners, certificates: Certificates
) -> None:
    old = listeners.open(config(certificates, a=None))
    new = listeners.open(config(certificates, b=None))

    listeners.keep(old, new)

    assert answers(old[0].ip, old[0].port)
    assert answers(new[0].ip, new[0].port)


def test_one_that_cannot_be_bound_leaves_none_of_the_new_behind(
    listeners: Listeners, certificates: Certificates, tmp_path: Path
) -> None:
    (kept,) = listeners.open(config(certificates, kept=None))
    with socket.create_server((LOCAL, 0)) as other:
        taken = TcpAddress(host=LOCAL, port=other.getsockname()[1])
        unix = UnixAddress(path=str(tmp_path / "new.sock"))
        before = open_descriptors()

        with pytest.raises(HandfastError, match="cannot listen on"):
            listeners.open(config(certificates, kept=None, a=None, b=unix, c=taken))

        assert open_descriptors() == before
    assert not (tmp_path / "new.sock").exists()
    assert answers(kept.ip, kept.port)


def test_a_listener_of_another_name_takes_the_socket_over(
    listeners: Listeners, certificates: Certificates, tmp_path: Path
) -> None:
    with socket.create_server((LOCAL, 0)) as free:
        port = free.getsockname()[1]
    tcp = TcpAddress(host=LOCAL, port=port)
    unix = UnixAddress(path=str(tmp_path / "front.sock"))
    old = listeners.open(config(certificates, a=tcp, b=unix))
    with socket.create_connection((LOCAL, port), 5) as waiting:
        waiting.sendall(b"hello")

        new = listeners.open(config(certificates, x=tcp, y=unix))
        listeners.keep(new)

        assert {each.number for each in old}.isdisjoint(each.number for each in new)
        new[0].sock.settimeout(5)
        accepted, address = new[0].sock.accept()
        accepted.close()
        assert address == waiting.getsockname()
    assert answers(LOCAL, port)
    assert unix_answers(unix.path)
    listeners.keep()
    assert not Path(unix.path).exists()


def test_a_refused_new_name_leaves_the_socket_to_the_old(
    listeners: Listeners, certificates: Certificates, tmp_path: Path
) -> None:
    unix = UnixAddress(path=str(tmp_path / "front.sock"))
    old = listeners.open(config(certificates, a=unix))
    listeners.open(config(certificates, x=unix))

    listeners.keep(old)

    assert unix_answers(unix.path)


def test_a_unix_socket_goes_with_its_listener(
    listeners: Listeners, certificates: Certificates, tmp_path: Path
) -> None:
    path = tmp_path / "front.sock"
    listeners.open(config(certificates, a=UnixAddress(path=str(path))))
    assert path.is_socket()

    listeners.close()

    assert not path.exists()


def test_a_socket_of_the_service_managers_is_used(
    listeners: Listeners, certificates: Certificates, manager: Manager
) -> None:
    address = manager.open(TcpAddress(host=LOCAL, port=0))
    given = manager.sockets[str(address)]

    (bound,) = listeners.open(config(certificates, a=address))

    assert bound.sock is given
    assert bound.given


def test_a_socket_of_the_service_managers_is_there_again_when_a_reload_wants_it_back(
    listeners: Listeners, certificates: Certificates, manager: Manager
) -> None:
    address = manager.open(TcpAddress(host=LOCAL, port=0))
    listeners.open(config(certificates, a=address))
    listeners.keep(listeners.open(config(certificates, b=None)))

    (bound,) = listeners.open(config(certificates, a=address))

    assert bound.given
    assert bound.port == manager.copies[0].getsockname()[1]


def test_a_refused_reload_does_not_cost_a_socket_of_the_service_managers(
    listeners: Listeners, certificates: Certificates, manager: Manager
) -> None:
    address = manager.open(TcpAddress(host=LOCAL, port=0))
    nowhere = UnixAddress(path="/no/such/directory/front.sock")
    with pytest.raises(HandfastError):
        listeners.open(config(certificates, a=address, b=nowhere))

    (bound,) = listeners.open(config(certificates, a=address))

    assert bound.given


def test_a_unix_socket_of_the_service_managers_is_not_removed(
    listeners: Listeners, certificates: Certificates, manager: Manager, tmp_path: Path
) -> None:
    address = manager.open(UnixAddress(path=str(tmp_path / "given.sock")))
    old = listeners.open(config(certificates, a=address))
    listeners.keep(listeners.open(config(certificates, other=address)))
    listeners.close()

    assert old[0].given
    assert (tmp_path / "given.sock").exists()


def test_all_sockets_are_closed_at_the_end(
    certificates: Certificates, manager: Manager, tmp_path: Path
) -> None:
    before = open_descriptors()
    listeners = Listeners(manager.claim)
    tcp = manager.open(TcpAddress(host=LOCAL, port=0))
    unix = UnixAddress(path=str(tmp_path / "a"))
    listeners.open(config(certificates, a=tcp, b=None, c=unix))
    listeners.keep(listeners.open(config(certificates, x=tcp, b=None)))

    listeners.close()

    assert open_descriptors() == before + 1  # the manager's copy
