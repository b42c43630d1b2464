"""The race of a target's addresses, on real sockets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from handfast.errors import BackendError
from handfast.relay.dial import ATTEMPT_DELAY, Dial
from handfast.relay.resolver import Endpoint
from handfast.transport.loop import Loop
from harness.processes import descriptors
from harness.streams import segments

LOCAL = "127.0.0.1"


class Dialling:
    """One dial, and what it came to."""

    def __init__(self, *endpoints: Endpoint, eager: bool = False) -> None:
        self.loop = Loop()
        self.ended: list[tuple[socket.socket, Any] | BackendError] = []
        self.dial = Dial(self.loop, list(endpoints), self._connected, self._failed, eager=eager)

    def _connected(self, sock: socket.socket, address: Any) -> None:
        self.ended.append((sock, address))
        self.loop.stop()

    def _failed(self, error: BackendError) -> None:
        self.ended.append(error)
        self.loop.stop()

    def run(self) -> Any:
        """Dial to the end, and give what it came to."""
        self.loop.call_later(20, self.loop.stop)
        self.dial.start()
        self.loop.run()
        [ended] = self.ended
        return ended

    def close(self) -> None:
        for each in self.ended:
            if not isinstance(each, BackendError):
                each[0].close()
        self.loop.close()


@pytest.fixture
def listening() -> Iterator[Endpoint]:
    with socket.create_server((LOCAL, 0)) as server:
        yield socket.AF_INET, server.getsockname()


@pytest.fixture
def refusing() -> Iterator[Endpoint]:
    with socket.socket() as bound:  # bound but not listening: nobody else gets the port
        bound.bind((LOCAL, 0))
        yield socket.AF_INET, bound.getsockname()


@pytest.fixture
def silent() -> Iterator[Endpoint]:
    """An address that never answers: its queue of one is full."""
    with socket.create_server((LOCAL, 0), backlog=0) as full, socket.socket() as first:
        first.connect(full.getsockname())
        yield socket.AF_INET, full.getsockname()


def test_the_first_address_wins_when_it_answers(listening: Endpoint, refusing: Endpoint) -> None:
    dialling = Dialling(listening, refusing)

    sock, address = dialling.run()

    assert address == sock.getpeername() == listening[1]
    assert not os.get_blocking(sock.fileno())
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    dialling.close()


def test_an_address_that_refuses_gives_way_to_the_next_at_once(
    listening: Endpoint, refusing: Endpoint
) -> None:
    dialling = Dialling(refusing, refusing, listening)

    started = time.monotonic()
    _, address = dialling.run()

    assert address == listening[1]
    assert time.monotonic() - started < ATTEMPT_DELAY
    dialling.close()


def test_an_address_that_is_silent_is_overtaken_after_a_quarter_of_a_second(
    listening: Endpoint, silent: Endpoint
) -> None:
    before = descriptors(os.getpid())
    dialling = Dialling(silent, listening)

    started = time.monotonic()
    _, address = dialling.run()
    took = time.monotonic() - started
    dialling.close()

    assert address == listening[1]
    assert took >= ATTEMPT_DELAY - 0.01
    assert descriptors(os.getpid()) == before, "the overtaken attempt is closed"


def test_when_all_refuse_the_last_refusal_is_told(refusing: Endpoint) -> None:
    dialling = Dialling(refusing, refusing)

    error = dialling.run()

    assert error.reason == f"cannot connect to {LOCAL} port {refusing[1][1]}"
    assert error.description == "Connection refused"
    dialling.close()


def test_without_an_address_it_fails() -> None:
    dialling = Dialling()

    assert str(dialling.run()) == "the target has no address"
    dialling.close()


def test_a_cancelled_dial_keeps_nothing_and_calls_nobody(silent: Endpoint) -> None:
    before = descriptors(os.getpid())
    dialling = Dialling(silent, silent)
    dialling.dial.start()

    dialling.dial.cancel()
    dialling.loop.call_later(ATTEMPT_DELAY * 2, dialling.loop.stop)
    dialling.loop.run()
    dialling.close()

    assert not dialling.ended
    assert descriptors(os.getpid()) == before


@pytest.mark.parametrize(("eager", "count"), [(False, 3), (True, 2)])
def test_the_first_data_takes_the_acknowledgement_along_when_it_is_at_hand(
    eager: bool, count: int
) -> None:
    with socket.create_server((LOCAL, 0)) as server:
        dialling = Dialling((socket.AF_INET, server.getsockname()), eager=eager)
        sock, _ = dialling.run()
        sock.send(b"question")
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(100) == b"question"
            assert segments(accepted) == count  # with the SYN
    dialling.close()


def test_a_target_learns_of_an_eager_connection_though_nothing_is_sent() -> None:
    with socket.create_server((LOCAL, 0)) as server:
        dialling = Dialling((socket.AF_INET, server.getsockname()), eager=True)
        dialling.run()
        server.settimeout(20)
        server.accept()[0].close()
    dialling.close()
