from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.errors import HandfastError
from handfast.observe.status import ListenerStatus, Status
from handfast.process.commands import Answer, Request, ask, control_path, state_directory

STATUS = Status(
    version="1.0",
    pid=42,
    uptime=3.5,
    state="serving",
    config="/etc/h.yaml",
    listeners=(ListenerStatus("127.0.0.1:443", "127.0.0.1:80", "a"),),
    processes=(),
    totals={"accepted": 1},
)


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """A control socket that gives one answer; yields the requests that came."""
    requests: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            requests.append(connection.recv(4096))
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(5)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield requests
        finally:
            thread.join()


def test_a_question_gets_its_answer(tmp_path: Path) -> None:
    answer = msgspec.json.encode(Answer(status=STATUS)) + b"\n"

    with answering(tmp_path / "c.sock", answer) as requests:
        assert ask(tmp_path / "c.sock", Request("status")) == Answer(status=STATUS)

    assert requests == [b'{"command":"status"}\n']


@pytest.mark.parametrize(
    "answer", [b"", b"\n", b"nonsense\n", b'{"error": 1}\n', b'{"error":"\xff\xfe"}\n']
)
def test_an_answer_that_makes_no_sense_is_an_error(tmp_path: Path, answer: bytes) -> None:
    with (
        answering(tmp_path / "c.sock", answer),
        pytest.raises(HandfastError, match="makes no sense"),
    ):
        ask(tmp_path / "c.sock", Request("status"))


def test_nobody_there_is_told_with_the_path(tmp_path: Path) -> None:
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))

    for path in (tmp_path / "none.sock", stale):
        with pytest.raises(HandfastError, match=f"no handfast is running.*{path.name}"):
            ask(path, Request("stop"))


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b'{"command":"reboot"}', b'{"command":"stop","force":true}', b'["stop"]', b"\xff"],
)
def test_only_known_commands_are_parsed(data: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        msgspec.json.decode(data, type=Request)


@given(data=st.binary(max_size=100))
def test_any_bytes_are_a_request_or_a_decode_error(data: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        msgspec.json.decode(data, type=Request)


def test_one_file_has_one_control_path_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "handfast.yaml"
    config.touch()
    (tmp_path / "link.yaml").symlink_to(config)
    monkeypatch.chdir(tmp_path)

    paths = {control_path(name) for name in (str(config), "handfast.yaml", "./link.yaml")}

    assert len(paths) == 1
    assert paths != {control_path("other.yaml")}
    assert control_path(None).name == "default.sock"


def test_a_user_has_the_control_socket_in_the_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    assert control_path(None).parent == tmp_path / "handfast"


def test_the_state_directory_follows_the_environment_if_it_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    given_one = state_directory()
    monkeypatch.setenv("XDG_STATE_HOME", "relative/path")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert given_one == tmp_path / "handfast"
    assert state_directory() == tmp_path / "home/.local/state/handfast"
