"""What a direction does when there is no room."""

from __future__ import annotations

import socket
from typing import Any

from unit.relay.relaying import listener_of, listening, plan_of, relaying, service_of


class Full:
    """A socket that once has no room."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._full = True

    def send(self, data: memoryview) -> int:
        full, self._full = self._full, False
        if full:
            raise BlockingIOError
        return self._sock.send(data)

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
