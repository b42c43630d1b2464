from __future__ import annotations

import array
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handfast.errors import HandfastError
from handfast.handover import channel
from handfast.handover.message import MAX_MESSAGE, Handover
from handfast.tls.handshake import MAX_HANDSHAKE
from unit.handover.encoding import encode
from unit.tls.sessions import AES128, sessions

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    sender, receiver = channel.pair()
    with sender, receiver:
        yield sender, receiver


@pytest.fixture
def descriptor() -> Iterator[int]:
    with Path("/dev/null").open("rb") as file:
        yield file.fileno()


def handover(unread: bytes = b"") -> Handover:
    return Handover(3, 1, 17.5, sessions(AES128, unread=unread)[0])


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path would be one more object


def post(sender: socket.socket, data: bytes, *descriptors: int) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    sender.sendmsg([data], [rights] if descriptors else [])


def test_too_many_descriptors_on_their_way_are_a_full_channel() -> None:
    program = f"""
import os, resource, sys
sys.path[:0] = {sys.path!r}
from unit.handover.test_channel import channel, handover
pairs = [channel.pair() for _ in range(4)]
message = handover()
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
if os.getuid() == 0:
    os.setuid(65534)  # root may have any number of them
sent = [1 for sender, _ in pairs for _ in range(100) if channel.send(sender, message, 0)]
assert 0 < len(sent) < 100, len(sent)
"""

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, timeout=30
    )

    assert ended.returncode == 0, ended.stderr.decode()


def test_a_session_arrives_with_its_socket(pair: Pair) -> None:
    sender, receiver = pair
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert channel.send(sender, handover(b"unread"), theirs.fileno())
        theirs.close()
        taken = channel.receive(receiver)
        assert taken is not None
        with socket.socket(fileno=taken[1][0]) as moved:
            moved.sendall(b"hello")

            assert ours.recv(10) == b"hello"
            assert taken[0] == handover(b"unread")


def test_the_descriptor_that_arrives_is_not_inherited(pair: Pair, descriptor: int) -> None:
    sender, receiver = pair
    channel.send(sender, handover(), descriptor)

    taken = channel.receive(receiver)

    assert taken is not None
    assert fcntl.fcntl(taken[1][0], fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(taken[1][0])


def test_an_empty_channel_gives_none(pair: Pair) -> None:
    assert channel.receive(pair[1]) is None


def test_the_largest_hand_over_fits_an_empty_channel(pair: Pair, descriptor: int) -> None:
    sender, receiver = pair
    large = handover(bytes(MAX_HANDSHAKE))

    assert channel.send(sender, large, descriptor)
    taken = channel.receive(receiver)

    assert taken is not None
    assert taken[0] == large
    os.close(taken[1][0])


def test_a_full_channel_takes_more_when_it_was_read(pair: Pair, descriptor: int) -> None:
    sender, receiver = pair
    sent = 0
    while channel.send(sender, handover(bytes(10_000)), descriptor):
        sent += 1

    received = 0
    while (taken := channel.receive(receiver)) is not None:
        os.close(taken[1][0])
        received += 1

    assert received == sent > 0
    assert channel.send(sender, handover(), descriptor)


def test_messages_keep_their_order_and_their_descriptors(pair: Pair) -> None:
    sender, receiver = pair
    pairs = [socket.socketpair() for _ in range(5)]
    for number, (_, theirs) in enumerate(pairs):
        channel.send(sender, Handover(number, 1, 1.0, sessions(AES128)[0]), theirs.fileno())

    for number, (ours, theirs) in enumerate(pairs):
        taken = channel.receive(receiver)
        assert taken is not None
        assert taken[0].listener == number
        assert os.write(taken[1][0], b"x") == 1
        assert ours.recv(1) == b"x"
        os.close(taken[1][0])
        ours.close()
        theirs.close()


def test_a_broken_channel_is_an_error_of_the_system(pair: Pair, descriptor: int) -> None:
    sender, receiver = pair
    receiver.close()

    with pytest.raises(OSError, match="roken pipe"):
        channel.send(sender, handover(), descriptor)


@pytest.mark.parametrize("count", [0, 2, 4, 5, 50])
def test_a_message_with_another_number_of_descriptors_leaks_none(
    pair: Pair, descriptor: int, count: int
) -> None:
    sender, receiver = pair
    before = open_descriptors()
    post(sender, encode(handover()), *[descriptor] * count)

    with pytest.raises(HandfastError):
        channel.receive(receiver)

    assert open_descriptors() == before
    assert channel.receive(receiver) is None


@pytest.mark.parametrize("data", [b"\x00", b"garbage", encode(handover())[:-3]])
def test_a_malformed_message_leaks_no_descriptor(pair: Pair, descriptor: int, data: bytes) -> None:
    sender, receiver = pair
    before = open_descriptors()
    post(sender, data, descriptor)

    with pytest.raises(HandfastError):
        channel.receive(receiver)

    assert open_descriptors() == before


def test_a_message_beyond_the_limit_leaks_no_descriptor(pair: Pair, descriptor: int) -> None:
    sender, receiver = pair
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
    before = open_descriptors()
    post(sender, encode(handover(bytes(MAX_MESSAGE + 1))), descriptor)

    with pytest.raises(HandfastError, match="cut short"):
        channel.receive(receiver)

    assert open_descriptors() == before


def test_a_good_message_is_read_after_a_bad_one(pair: Pair, descriptor: int) -> None:
    sender, receiver = pair
    post(sender, b"garbage", descriptor, descriptor)
    channel.send(sender, handover(), descriptor)

    with pytest.raises(HandfastError):
        channel.receive(receiver)
    taken = channel.receive(receiver)

    assert taken is not None
    assert taken[0] == handover()
    os.close(taken[1][0])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(min_size=1, max_size=300), count=st.integers(0, 3), known=st.booleans())
def test_any_message_leaks_no_descriptor(
    pair: Pair, descriptor: int, data: bytes, count: int, known: bool
) -> None:
    sender, receiver = pair
    before = open_descriptors()
    post(sender, (encode(handover())[:30] if known else b"") + data, *[descriptor] * count)

    with pytest.raises(HandfastError):
        channel.receive(receiver)

    assert open_descriptors() == before
