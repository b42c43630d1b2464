"""How many connections keep their derived keys."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from handfast.config import TcpAddress, Timeouts
from handfast.handover import channel
from handfast.handover.message import Handover
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.relay.connection import Connection
from handfast.relay.relay import WARM_LIMIT, Relay, Service
from handfast.tls.session import Direction, Role, Session
from handfast.transport.loop import Loop

SESSION = Session(Role.SERVER, 0x1301, Direction(b"r" * 32), Direction(b"w" * 32))
SERVICE = Service("127.0.0.1", 1, socket.AF_INET, TcpAddress(host="127.0.0.1", port=9))


@pytest.fixture
def relay() -> Iterator[Relay]:
    loop = Loop()
    sender, receiver = channel.pair()
    log = Log(os.open(os.devnull, os.O_WRONLY), Level.INFO, process_type="worker")
    with sender, receiver:
        yield Relay(loop, receiver, (SERVICE,), Timeouts(), log, loop.stop)
    log.close()
    loop.close()


def connections(relay: Relay, count: int, touched: float) -> list[Connection]:
    made = []
    for _ in range(count):
        with socket.socket() as sock:
            connection = Connection(relay, SERVICE, sock, Handover(0, 0.0, SESSION))
        connection.touched = touched
        made.append(connection)
    return made


def test_beyond_the_limit_the_quiet_ones_forget_their_keys(relay: Relay) -> None:
    quiet = connections(relay, WARM_LIMIT, 1000.0)
    busy = connections(relay, 100, 1010.0)

    for connection in quiet + busy:
        relay.warm_up(connection)

    assert sum(connection.warm for connection in quiet) == WARM_LIMIT - 100
    assert all(connection.warm for connection in busy)


def test_those_that_were_used_just_now_keep_theirs_however_many_they_are(relay: Relay) -> None:
    busy = connections(relay, WARM_LIMIT + 100, 1000.0)

    for connection in busy:
        relay.warm_up(connection)

    assert all(connection.warm for connection in busy)


def test_their_number_goes_down_again_after_a_burst(relay: Relay) -> None:
    burst = connections(relay, WARM_LIMIT + 200, 1000.0)
    later = connections(relay, 200, 1010.0)

    for connection in burst + later:
        relay.warm_up(connection)

    assert sum(connection.warm for connection in burst + later) == WARM_LIMIT
