from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from handfast.config import Address, Certificate, Listener, TcpAddress, UnixAddress
from handfast.errors import HandfastError
from handfast.process import listening
from handfast.process.listening import Bound, is_stale


def listener(address: Address) -> Listener:
    return Listener(
        name="test",
        address=address,
        certificates=(Certificate(chain="chain.pem", key="key.pem"),),
    )


def bind(listener: Listener) -> Bound:
    return listening.bind(listener, 0, None)


def test_a_port_of_0_gets_a_number() -> None:
    bound = bind(listener(TcpAddress(host="127.0.0.1", port=0)))
    with bound.sock, socket.create_connection((bound.ip, bound.port), 5):
        assert bound.text == f"127.0.0.1:{bound.port}"
        assert bound.port > 0
        assert not bound.sock.getblocking()


def test_an_ipv6_address_is_written_in_brackets() -> None:
    bound = bind(listener(TcpAddress(host="::1", port=0)))
    with bound.sock:
        assert bound.text == f"[::1]:{bound.port}"


def test_an_occupied_port_names_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]

        with pytest.raises(HandfastError) as caught:
            bind(listener(TcpAddress(host="127.0.0.1", port=port)))

    text = str(caught.value)
    assert text.startswith(f"cannot listen on 127.0.0.1:{port}")
    assert f"127.0.0.1:{port} is held by" in text
    assert re.search(rf"\(pid {os.getpid()}\)", text)


def test_a_unix_socket_is_bound_and_a_stale_one_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "handfast.sock")
    first = bind(listener(UnixAddress(path=path)))
    alive = is_stale(path)
    first.sock.close()
    stale = is_stale(path)

    second = bind(listener(UnixAddress(path=path)))

    with second.sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert (alive, stale) == (False, True)
        assert second.text == f"unix:{path}"


def test_a_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "handfast.sock")
    first = bind(listener(UnixAddress(path=path)))

    with first.sock, socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(HandfastError, match="cannot listen on unix:"):
            bind(listener(UnixAddress(path=path)))
        client.connect(path)


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")

    with pytest.raises(HandfastError):
        bind(listener(UnixAddress(path=str(path))))

    assert path.read_text() == "data"
    assert not is_stale(str(path))
    assert not is_stale(str(tmp_path / "missing"))


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(HandfastError, match=r"cannot listen on 192\.0\.2\.1:1"):
        bind(listener(TcpAddress(host="192.0.2.1", port=1)))


def test_a_socket_that_was_given_is_used_as_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]
        bound = listening.bind(listener(TcpAddress(host="127.0.0.1", port=port)), 7, given)

        assert bound.sock is given
        assert (bound.number, bound.port, bound.given) == (7, port, True)
