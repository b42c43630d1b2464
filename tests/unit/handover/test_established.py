"""The message that carries a connection from relay to relay."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handfast.errors import HandfastError
from handfast.handover import channel
from handfast.handover.message import (
    FORMAT,
    MAX_MESSAGE,
    READS,
    Course,
    Established,
    Handover,
    decode,
    encode_into,
    with_bulk,
)
from handfast.tls.session import Direction, Peer
from harness.processes import descriptors
from unit.tls.sessions import AES128, sessions

SERVER, CLIENT = sessions(AES128)


def established(**changes: object) -> Established:
    """A connection with everything that one can have."""
    usual = Established(
        Peer("192.0.2.1", 4433, certificates=(b"leaf", b"root")),
        SERVER,
        CLIENT,
        Course(ended=True, pending=b"to the target", carried=1),
        Course(ended=False, pending=None, carried=2),
        "ready",
        b"a target",
        ("127.0.0.1", 9000),
        (False, True),
        123.5,
        124.5,
    )
    return msgspec.structs.replace(usual, **changes)


def there_and_back(handover: Handover) -> Handover:
    buffer = bytearray()
    bulk = encode_into(buffer, handover)
    back, count = decode(memoryview(buffer))
    assert len(buffer) <= MAX_MESSAGE
    assert count == (2 if bulk is None else 3)
    return back if bulk is None else with_bulk(back, bulk)


courses = st.builds(
    Course, st.booleans(), st.none() | st.binary(max_size=50), st.integers(0, 1 << 63)
)
burdens = st.builds(
    established,
    client=st.sampled_from([None, SERVER]),
    target=st.sampled_from([None, CLIENT]),
    to_target=courses,
    to_client=courses,
    logged=st.tuples(st.booleans(), st.booleans()),
    touched=st.floats(0, 1e9),
)


@given(burden=burdens, generation=st.integers(0, (1 << 32) - 1))
def test_a_connection_comes_back_as_it_was(burden: Established, generation: int) -> None:
    handover = Handover(7, generation, 99.5, burden)

    assert there_and_back(handover) == handover


@pytest.mark.parametrize("size", [MAX_MESSAGE // 2, MAX_MESSAGE, 160_000])
def test_what_a_packet_has_no_room_for_goes_beside_it(size: int) -> None:
    """As much as two directions can hold, and the start of a record each."""
    burden = established(
        client=msgspec.structs.replace(SERVER, unread=os.urandom(16_000)),
        to_target=Course(ended=False, pending=os.urandom(size), carried=0),
        to_client=Course(ended=True, pending=os.urandom(size), carried=0),
    )
    handover = Handover(7, 1, 99.5, burden)

    assert there_and_back(handover) == handover


def test_the_bulk_has_no_secret() -> None:
    buffer = bytearray()
    pending = Course(ended=False, pending=bytes(MAX_MESSAGE), carried=0)

    bulk = encode_into(buffer, Handover(7, 1, 99.5, established(to_target=pending)))

    assert bulk is not None
    for direction in (SERVER.read, SERVER.write, CLIENT.read, CLIENT.write):
        assert bytes(direction.secret) not in bulk
        assert bytes(direction.secret) in buffer


def test_no_repr_shows_a_secret_or_traffic() -> None:
    text = repr(Handover(7, 1, 99.5, established()))

    assert "to the target" not in text
    assert repr(SERVER.read.secret)[2:20] not in text


def test_the_secrets_are_overwritten_when_it_was_sent() -> None:
    client = msgspec.structs.replace(
        SERVER, read=Direction(bytearray(b"r" * 32)), write=Direction(bytearray(b"w" * 32))
    )
    target = msgspec.structs.replace(
        CLIENT, read=Direction(bytearray(b"R" * 32)), write=Direction(bytearray(b"W" * 32))
    )

    Handover(7, 1, 99.5, established(client=client, target=target)).wipe()

    for session in (client, target):
        assert not any(session.read.secret + session.write.secret)


def test_this_version_reads_what_it_writes() -> None:
    assert FORMAT in READS


@pytest.mark.parametrize("version", [0, FORMAT - 2, FORMAT + 1, 255])
def test_another_format_is_refused_by_its_number(version: int) -> None:
    buffer = bytearray()
    encode_into(buffer, Handover(7, 1, 99.5, established()))
    buffer[0] = version

    with pytest.raises(HandfastError, match=f"unknown format {version}"):
        decode(memoryview(buffer))


def test_a_field_that_the_next_version_adds_is_left_out() -> None:
    """What makes it possible that a version reads the one before, and is read by it if it may."""

    class Following(Established, frozen=True, array_like=True):
        news: str = "none"

    buffer = bytearray()
    encode_into(buffer, Handover(7, 1, 99.5, established()))
    values = [getattr(established(), each) for each in Established.__struct_fields__]
    following = msgspec.msgpack.encode(Following(*values))

    back, _ = decode(memoryview(bytes(buffer[:18]) + following))

    assert back.session == established()


@settings(max_examples=300)
@given(data=st.binary(max_size=300), kind=st.sampled_from([2, 3]))
def test_any_bytes_give_a_connection_or_an_error(data: bytes, kind: int) -> None:
    with contextlib.suppress(HandfastError):
        decode(memoryview(bytes((FORMAT, kind)) + bytes(16) + data))


@given(flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_connection_gives_another_or_an_error(flips: list[tuple[int, int]]) -> None:
    buffer = bytearray()
    encode_into(buffer, Handover(7, 1, 99.5, established()))
    for place, mask in flips:
        buffer[place % len(buffer)] ^= mask

    with contextlib.suppress(HandfastError):
        decode(memoryview(buffer))


@given(data=st.binary(max_size=100))
def test_any_bytes_are_bulk_or_an_error(data: bytes) -> None:
    with contextlib.suppress(HandfastError):
        with_bulk(Handover(7, 1, 99.5, established()), data)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    sender, receiver = channel.pair()
    with sender, receiver:
        yield sender, receiver


@pytest.mark.parametrize("size", [10, MAX_MESSAGE])
def test_both_sockets_arrive_and_nothing_else_stays_open(
    pair: tuple[socket.socket, socket.socket], size: int
) -> None:
    sender, receiver = pair
    course = Course(ended=False, pending=os.urandom(size), carried=0)
    handover = Handover(7, 1, 99.5, established(to_client=course))
    ours, theirs = zip(socket.socketpair(), socket.socketpair(), strict=True)
    before = descriptors(os.getpid())

    assert channel.send(sender, handover, *(each.fileno() for each in theirs))
    taken = channel.receive(receiver)

    assert taken is not None
    assert taken[0] == handover
    for mine, descriptor in zip(ours, taken[1], strict=True):
        with socket.socket(fileno=descriptor) as moved:
            moved.sendall(b"hello")
            assert mine.recv(10) == b"hello"
    assert descriptors(os.getpid()) == before
    for each in (*ours, *theirs):
        each.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(count=st.integers(0, 4), bulk=st.booleans())
def test_a_connection_with_another_number_of_descriptors_leaks_none(
    pair: tuple[socket.socket, socket.socket], count: int, bulk: bool
) -> None:
    sender, receiver = pair
    buffer = bytearray()
    size = MAX_MESSAGE if bulk else 10
    course = Course(ended=False, pending=bytes(size), carried=0)
    beside = encode_into(buffer, Handover(7, 1, 1.0, established(to_target=course)))
    before = descriptors(os.getpid())
    null = os.open(os.devnull, os.O_RDONLY)
    socket.send_fds(sender, [buffer], [null] * count)
    os.close(null)

    try:
        taken = channel.receive(receiver)
    except (HandfastError, OSError):
        taken = None

    if taken is not None:
        assert (count, beside) == (2, None)
        for each in taken[1]:
            os.close(each)
    assert descriptors(os.getpid()) == before
