from __future__ import annotations

import os
import socket
from pathlib import Path

from handfast.process.control import ControlServer, Pending
from handfast.transport.loop import Loop


def test_a_client_that_left_takes_nothing_off_the_loop_when_its_time_is_up(tmp_path: Path) -> None:
    loop = Loop()
    server = ControlServer(tmp_path / "control", loop, lambda _request, _client: None)
    left, far = socket.socketpair()
    number = left.fileno()
    client = Pending(server, loop, left)
    server.clients.add(client)
    client.close()
    reading, writing = os.pipe()
    os.dup2(reading, number)  # its number is another's now
    heard: list[bytes] = []

    def hear() -> None:
        heard.append(os.read(number, 1))
        loop.stop()

    loop.add_reader(number, hear)
    client.give_up()  # the clock that runs for each client
    os.write(writing, b"x")
    loop.call_later(5, loop.stop)
    loop.run()

    assert heard == [b"x"]
    server.close()
    loop.close()
    far.close()
    for descriptor in {number, reading, writing}:  # one of them may have the number itself
        os.close(descriptor)
