"""How a direction ends, and what it does when there is no room for that."""

from __future__ import annotations

import gc
import socket
from typing import Any

import pytest

from handfast.relay.connection import Connection
from handfast.relay.failover import Failover
from handfast.relay.pump import Flow
from handfast.relay.upstream import Upstream
from harness.homes import IN_KERNEL
from harness.streams import segments
from unit.relay.relaying import listener_of, listening, plan_of, relaying, service_of


class Full:
    """A socket that once has no room."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._full = True

    def send(self, data: memoryview, flags: int = 0) -> int:
        full, self._full = self._full, False
        if full:
            raise BlockingIOError
        return self._sock.send(data, flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_an_end_for_which_there_is_no_room_is_sent_when_there_is() -> None:
    """Both sides have ended then, and the connection with them but for these bytes."""
    with listening() as door, relaying(plan_of(listener_of(service_of(door)))) as front:
        client = front.client()
        target = front.target(door)
        client.write(b"question")
        target.receive(8)
        client.send_all(client.end.writer.alert(0))
        target.wait_for_the_end()
        (connection,) = front.connections
        connection.to_client.sink = Full(connection.client)  # type: ignore[assignment]
        target.finish()
        client.wait_for_the_end()

        assert client.end.reader.closed
        assert not front.connections
        assert "error_msg" not in front.event(subevent="client_disconnect")


@pytest.mark.skipif(IN_KERNEL, reason="the kernel sends its records by itself")
def test_close_notify_and_fin_go_in_one_segment() -> None:
    with listening() as door, relaying(plan_of(listener_of(service_of(door)))) as front:
        client = front.client()
        target = front.target(door)
        client.write(b"question")
        target.receive(8)
        before = segments(client.sock)
        target.finish()
        client.wait_for_the_end()

        assert client.end.reader.closed
        assert segments(client.sock) == before + 1


def test_a_connection_that_has_ended_leaves_nothing_behind() -> None:
    gc.collect()
    gc.disable()
    try:
        with listening() as door, relaying(plan_of(listener_of(service_of(door)))) as front:
            client = front.client()
            target = front.target(door)
            client.send_all(client.end.writer.alert(0))
            target.wait_for_the_end()
            target.finish()
            client.wait_for_the_end()
            left = [
                each
                for each in gc.get_objects()
                if isinstance(each, Connection | Flow | Upstream | Failover)
            ]

            assert not left
    finally:
        gc.enable()
