"""Where sessions come in: from whom, how many at once, and what is no session."""

from __future__ import annotations

import array
import asyncio
import gc
import grp
import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handfast import app
from handfast.app import intake
from handfast.app.intake import receive
from handfast.errors import HandfastError
from handfast.handover.application import MAX_MESSAGE, TAKEN, Facts, Offer, encode
from harness.forked import in_child
from unit.app.clients import pair
from unit.tls.sessions import AES128, End, sessions

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be others")
NOBODY = 65534


class Handfast:
    """Plays the relay: connects, and hands sessions over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self.clients: list[tuple[socket.socket, End]] = []

    def connect(self) -> socket.socket:
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sock.settimeout(10)
        sock.connect(str(self.path))
        return sock

    def hand_over(self, name: str = "", via: socket.socket | None = None) -> socket.socket:
        """Send a session; `name` is what its client asked for."""
        server, client = sessions(AES128)
        far, near = pair()
        far.settimeout(10)
        self.clients.append((self._stack.enter_context(far), End(client)))
        channel = via or self.connect()
        with near:
            post(channel, bytes(encode(Offer(Facts(sni=name), server))), near.fileno())
        return channel

    def close(self) -> None:
        self._stack.close()


def post(channel: socket.socket, data: bytes, *descriptors: int) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    channel.sendmsg([data], [rights] if descriptors else [])


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path would be one more object


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.sock"


@pytest.fixture
def listener(path: Path) -> Iterator[app.Listener]:
    with app.listen(path) as made:
        yield made


@pytest.fixture
def handfast(listener: app.Listener, path: Path) -> Iterator[Handfast]:
    made = Handfast(path)
    yield made
    made.close()


def test_a_session_is_taken_and_confirmed(listener: app.Listener, handfast: Handfast) -> None:
    channel = handfast.hand_over("a.example")

    with listener.accept(10) as connection:
        assert connection.peer.sni == "a.example"
        assert channel.recv(100) == TAKEN
        assert channel.recv(100) == b""  # one connection, one session
        connection.write(b"hello")
        sock, client = handfast.clients[0]
        assert client.open(sock.recv(100)) == b"hello"
        sock.close()


def test_sessions_are_given_one_after_the_other(listener: app.Listener, handfast: Handfast) -> None:
    for name in ("a", "b", "c"):
        handfast.hand_over(name)

    found = []
    for connection in listener:
        found.append(connection.peer.sni)
        connection.abort()
        if len(found) == 3:
            listener.close()

    assert sorted(found) == ["a", "b", "c"]


def test_one_who_is_slow_with_the_message_holds_up_nobody(
    listener: app.Listener, handfast: Handfast
) -> None:
    slow = handfast.connect()
    handfast.hand_over("quick")
    first = listener.accept(10)
    handfast.hand_over("slow", slow)
    second = listener.accept(10)

    assert (first.peer.sni, second.peer.sni) == ("quick", "slow")
    first.abort()
    second.abort()


def test_with_asyncio_it_is_the_same(listener: app.Listener, handfast: Handfast) -> None:
    slow = handfast.connect()

    async def serve() -> list[str]:
        found = []
        async for connection in listener:
            found.append(connection.peer.sni)
            await connection.write(connection.peer.sni.encode())
            connection.abort()
            if len(found) == 1:
                handfast.hand_over("slow", slow)
            else:
                listener.close()
        return found

    handfast.hand_over("quick")

    assert asyncio.run(serve()) == ["quick", "slow"]


def test_closing_the_listener_ends_the_task_that_waits(listener: app.Listener) -> None:
    async def serve() -> None:
        async for _ in listener:
            pass

    async def main() -> None:
        serving = asyncio.create_task(serve())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        listener.close()
        await asyncio.wait_for(serving, 10)

    asyncio.run(main())


def test_waiting_for_a_session_has_a_limit(listener: app.Listener) -> None:
    with pytest.raises(TimeoutError):
        listener.accept(0.01)


def test_who_gave_up_meanwhile_leaves_no_session_behind(
    listener: app.Listener, handfast: Handfast
) -> None:
    assert listener.intake.fileno() > 0
    before = open_descriptors()
    handfast.hand_over().close()

    with pytest.raises(TimeoutError):
        listener.accept(0.05)
    sock, _ = handfast.clients[0]
    assert sock.recv(1) == b""  # closed, and with no close_notify: no end to the client
    sock.close()
    assert open_descriptors() == before


def test_after_a_fork_each_process_takes_sessions(
    listener: app.Listener, handfast: Handfast
) -> None:
    handfast.hand_over("parent")
    listener.accept(10).abort()
    handfast.hand_over("child")

    def work() -> str:
        return listener.accept(10).peer.sni

    assert in_child(work) == "child"
    handfast.hand_over("parent again")
    connection = listener.accept(10)
    assert connection.peer.sni == "parent again"
    connection.abort()


# The socket


def test_the_socket_has_the_mode_and_the_group_that_are_wanted(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid())
    for mode in (0o660, 0o600):
        path = tmp_path / f"{mode}.sock"
        with app.listen(path, mode=mode, group=group.gr_name):
            found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (mode, group.gr_gid)


def test_a_socket_that_is_left_over_is_replaced_and_one_in_use_is_not(path: Path) -> None:
    app.listen(path).close()
    assert path.is_socket()
    with app.listen(path), pytest.raises(OSError, match="Address already in use"):
        app.listen(path)


def test_what_is_no_socket_stays(path: Path) -> None:
    path.write_text("precious")

    with pytest.raises(OSError, match="Address already in use"):
        app.listen(path)
    assert path.read_text() == "precious"


def test_a_group_that_is_not_there_is_an_error(path: Path) -> None:
    with pytest.raises(KeyError):
        app.listen(path, group="no-such-group")
    assert not path.exists()


def test_a_listener_that_is_closed_gives_nothing(listener: app.Listener) -> None:
    listener.close()

    with pytest.raises(OSError, match="closed"):
        listener.accept()
    assert list(listener) == []


# Who may hand sessions over


@needs_root
@pytest.mark.parametrize("trusted", [(), ("nobody",), (str(NOBODY),), ("no-such-user",)])
def test_only_who_is_trusted_can_hand_sessions_over(
    public_path: Path, trusted: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    path = public_path / "app.sock"
    with app.listen(path, mode=0o666, trusted=trusted) as listener:
        handing = Handfast(path)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.setgroups([])
                os.setuid(NOBODY)
                handing.hand_over("forged").recv(10)
                code = 0
            except OSError:
                pass
            finally:
                os._exit(code)
        if trusted in {("nobody",), (str(NOBODY),)}:
            connection = listener.accept(10)
            assert connection.peer.sni == "forged"
            connection.abort()
        else:
            with pytest.raises(TimeoutError):
                listener.accept(0.5)
            assert f"user {NOBODY} connected, who is not trusted" in caplog.text
        os.waitpid(pid, 0)


# What is no session


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(noise=st.binary(max_size=300), descriptors=st.integers(0, 6))
def test_noise_is_refused_and_its_descriptors_are_closed(noise: bytes, descriptors: int) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        before = open_descriptors()
        post(near, noise, *[0] * descriptors)
        try:
            assert receive(far) is None
            assert not noise
        except HandfastError:
            pass
        assert open_descriptors() == before


def whole() -> bytes:
    return bytes(encode(Offer(Facts(), sessions(AES128)[0])))


@pytest.mark.parametrize("descriptors", [0, 2, 5])
def test_a_message_comes_with_one_descriptor(descriptors: int) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        before = open_descriptors()
        post(near, whole(), *[near.fileno()] * descriptors)
        with pytest.raises(HandfastError):
            receive(far)
        assert open_descriptors() == before


def test_a_descriptor_of_something_else_is_refused() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far, Path("/dev/null").open() as file:
        before = open_descriptors()
        post(near, whole(), file.fileno())
        with pytest.raises(HandfastError, match="something else than a socket"):
            receive(far)
        assert open_descriptors() == before


def test_a_message_that_is_too_long_is_refused() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        post(near, bytes(MAX_MESSAGE + 2), near.fileno())
        with pytest.raises(HandfastError, match="cut short"):
            receive(far)


def test_what_is_refused_is_not_confirmed_and_the_next_is_taken(
    listener: app.Listener, handfast: Handfast, caplog: pytest.LogCaptureFixture
) -> None:
    bad = handfast.connect()
    post(bad, b"noise", 0)
    handfast.hand_over("good")

    connection = listener.accept(10)

    assert connection.peer.sni == "good"
    assert bad.recv(100) == b""
    assert "a session was not taken" in caplog.text
    connection.abort()


def test_one_who_brings_no_message_is_given_up(
    listener: app.Listener, handfast: Handfast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MESSAGE_SECONDS", 0.05)
    silent = handfast.connect()

    with pytest.raises(TimeoutError):
        listener.accept(0.5)
    assert silent.recv(1) == b""


def test_connections_without_a_message_are_bounded(
    listener: app.Listener, handfast: Handfast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_WAITING", 3)
    waiting = [handfast.connect() for _ in range(5)]
    with pytest.raises(TimeoutError):
        listener.accept(0.1)

    for gone in waiting[:2]:
        assert gone.recv(1) == b""
    handfast.hand_over("still there", waiting[-1])
    connection = listener.accept(10)
    assert connection.peer.sni == "still there"
    connection.abort()


_STARVED = """
import resource, sys
sys.path[:0] = {path!r}
from handfast import app
from unit.app.test_listener import Handfast, Path
listener = app.listen({where!r})
handfast = Handfast(Path({where!r}))
channel = handfast.hand_over("later")
held = []
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
listener.intake
resource.setrlimit(resource.RLIMIT_NOFILE, (len(__import__("os").listdir("/proc/self/fd")), hard))
try:
    listener.accept(0.3)
except TimeoutError:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(listener.accept(5).peer.sni)
"""


def test_want_of_descriptors_is_waited_out(path: Path) -> None:
    program = _STARVED.format(path=sys.path, where=str(path))

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.stdout == "later\n", done.stderr


def test_a_session_for_whose_socket_no_descriptor_is_free_is_not_confirmed() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        post(near, whole(), near.fileno())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (far.fileno() + 1, hard))
        try:
            with pytest.raises(HandfastError, match="no descriptor is free"):
                receive(far)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_neither_descriptors_nor_memory_stay(listener: app.Listener, handfast: Handfast) -> None:
    def once() -> None:
        channel = handfast.hand_over()
        with listener.accept(10) as connection:
            connection.write(b"x")
            connection.abort()
        channel.close()
        handfast.clients.pop()[0].close()

    def many() -> None:
        for _ in range(50):
            once()
        gc.collect()

    def objects() -> int:
        return sum(str(type(each).__module__).startswith("handfast.") for each in gc.get_objects())

    many()
    before, kept = open_descriptors(), objects()
    many()

    assert (open_descriptors(), objects()) == (before, kept)
