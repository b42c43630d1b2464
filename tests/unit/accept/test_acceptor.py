"""An acceptor between real sockets: what it must not keep when things go wrong."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from handfast.accept.acceptor import Acceptor, Terms
from handfast.config import Limits
from handfast.handover import channel
from handfast.handover.message import Handover, Passthrough
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.tls.session import Peer
from handfast.transport.census import Census, Column
from handfast.transport.loop import Loop


class Staged:
    """An acceptor without a door, with one relay's channel."""

    def __init__(self, directory: Path) -> None:
        self.loop = Loop()
        self.log = directory / "log"
        self.sender, self.receiver = channel.pair()
        self.ended = False
        writer = Log.open(self.log, Level.DEBUG, process_type="worker")
        terms = Terms(1, 5.0, Limits(), Column(Census(1), 0))
        self.acceptor = Acceptor(self.loop, (), (self.sender,), terms, writer, self.end)
        self._writer = writer

    def end(self) -> None:
        self.ended = True
        self.loop.stop()

    def close(self) -> None:
        self._writer.close()
        self.sender.close()
        self.receiver.close()
        self.loop.close()


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[Staged]:
    made = Staged(tmp_path)
    yield made
    made.close()


def test_a_connection_that_is_too_long_to_be_handed_over_is_closed_and_told(
    staged: Staged,
) -> None:
    client, ours = socket.socketpair()
    through = Passthrough(Peer("192.0.2.1", 1), bytes(1 << 20))

    staged.acceptor.hand_over(Handover(0, 1, 0.0, through), ours)
    staged.acceptor.drain()
    staged.loop.run()

    client.settimeout(5)
    assert client.recv(1) == b""
    assert "cannot be handed over" in staged.log.read_text()
    assert staged.ended
    client.close()


def test_what_leaves_in_one_turn_leaves_at_its_end_in_order_and_an_acceptor_that_drains_waits(
    staged: Staged,
) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    for number, (_, ours) in enumerate(pairs):
        through = Passthrough(Peer("192.0.2.1", number), b"")
        staged.acceptor.hand_over(Handover(0, 1, 0.0, through), ours)
    staged.acceptor.drain()
    early = channel.receive(staged.receiver), staged.ended

    staged.loop.run()

    assert early == (None, False)
    ports = []
    while received := channel.receive(staged.receiver):
        ports.append(received[0].session.peer.port)
        os.close(received[1][0])
    assert ports == [0, 1, 2]
    assert staged.ended
    for client, _ in pairs:
        assert client.recv(1) == b""
        client.close()
