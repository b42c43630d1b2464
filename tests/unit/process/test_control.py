from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import msgspec
import pytest

from handfast.process import control as controls
from handfast.process.commands import Answer, Request
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


def test_an_answer_of_any_size_arrives_whole_and_a_client_that_does_not_take_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "_PATIENCE", 0.5)
    loop = Loop()
    long = Answer(error="x" * 3_000_000)

    def handle(_: Request, client: Pending) -> None:
        client.answer(long)
        client.close()

    server = ControlServer(tmp_path / "control", loop, handle)
    with socket.socket(socket.AF_UNIX) as reader, socket.socket(socket.AF_UNIX) as idle:
        for each in (reader, idle):
            each.settimeout(10)
            each.connect(str(tmp_path / "control"))
            each.sendall(b'{"command": "status"}\n')
        taken: list[bytes] = []
        thread = threading.Thread(target=lambda: taken.extend(iter(lambda: reader.recv(4096), b"")))
        thread.start()
        loop.call_later(1.5, loop.stop)
        loop.run()
        thread.join(10)

        assert msgspec.json.decode(b"".join(taken), type=Answer) == long
        assert server.clients == set()
    server.close()
    loop.close()
