"""What is stowed for the next program: hostile until it is parsed."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.errors import HandfastError
from handfast.handover.message import FORMAT, MAX_MESSAGE
from handfast.process.inheritance import Program
from handfast.process.stowage import Door, Identity, Manifest, Stowage, Unstowed, identify, is_bulk

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
PROGRAM = Program("1.2", "/usr/bin/python3", ("serve",))
DOORS = (Door("https", ":443", 0, 3, (8, 77)), Door("", "127.0.0.1:5", 1, 4))

Connection = tuple[bytes, bytes | None, tuple[Identity, ...]]
CONNECTIONS: list[Connection] = [
    (b"first", None, ((8, 1), (8, 2))),
    (b"second", b"and its bulk", ((8, 3), (8, 4))),
    (b"third", b"", ((8, 2**63),)),
]


def manifest(**changes: object) -> Manifest:
    whole = Manifest(program=PROGRAM, began=1.5, started=0.5, doors=DOORS, generation=7, packets=3)
    return msgspec.structs.replace(whole, **changes)


def stowed(connections: list[Connection] = CONNECTIONS, **changes: object) -> int:
    stowage = Stowage()
    for message, bulk, identities in connections:
        view = None if bulk is None else memoryview(bulk)
        stowage.add(memoryview(message), view, identities)
    assert stowage.count == len(connections)
    return stowage.seal(manifest(packets=len(connections), **changes))


def sealed(data: bytes) -> int:
    descriptor = os.memfd_create("stowage", os.MFD_ALLOW_SEALING)
    os.write(descriptor, data)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    return descriptor


def bytes_of(descriptor: int) -> bytes:
    try:
        return os.pread(descriptor, 1 << 20, 0)
    finally:
        os.close(descriptor)


def read(unstowed: Unstowed) -> Iterator[Connection]:
    for each in unstowed.packets:
        bulk = unstowed.bulk(each)
        yield (
            bytes(unstowed.message(each)),
            None if bulk is None else bytes(bulk),
            each.identities,
        )


def test_what_was_stowed_comes_out_as_it_was() -> None:
    unstowed = Unstowed(stowed())

    assert list(read(unstowed)) == CONNECTIONS
    assert unstowed.manifest == manifest()
    unstowed.close()


def test_nobody_can_change_it_afterwards() -> None:
    descriptor = stowed()
    for change in (
        lambda: os.pwrite(descriptor, b"x", 0),
        lambda: os.ftruncate(descriptor, 1),
        lambda: os.ftruncate(descriptor, 1 << 20),
    ):
        with pytest.raises(PermissionError):
            change()
    os.close(descriptor)


def test_one_connection_more_or_less_than_was_counted_is_damage() -> None:
    for count in (2, 4):
        data = bytes_of(stowed())
        wrong = data.replace(
            msgspec.msgpack.encode({"packets": 3})[1:],
            msgspec.msgpack.encode({"packets": count})[1:],
        )
        with pytest.raises(HandfastError, match="connections were stowed"):
            Unstowed(sealed(wrong))


def test_another_format_is_named_with_those_that_are_read() -> None:
    with pytest.raises(HandfastError, match=rf"of format 99, and this version reads {FORMAT}"):
        Unstowed(stowed(format=99))


def test_fields_of_a_later_version_are_left_out() -> None:
    data = msgspec.msgpack.decode(msgspec.msgpack.encode(manifest(packets=0)))
    body = msgspec.msgpack.encode({**data, "news": [1, 2]})
    unstowed = Unstowed(sealed(body + struct.pack("!8sQI", b"handfast", 0, len(body))))

    assert unstowed.manifest == manifest(packets=0)
    unstowed.close()


@pytest.mark.parametrize(
    "head",
    [
        (MAX_MESSAGE + 1, 0, 1),
        (4, 0, 0),
        (4, 0, 3),
        (4, 2**32 - 1, 1),
        (2**32 - 1, 0, 1),
    ],
)
def test_a_connection_of_impossible_size_is_damage(head: tuple[int, int, int]) -> None:
    packet = struct.pack("!IIB", *head) + bytes(36)
    body = msgspec.msgpack.encode(manifest(packets=1))
    footer = struct.pack("!8sQI", b"handfast", len(packet), len(body))
    with pytest.raises(HandfastError):
        Unstowed(sealed(packet + body + footer))


def test_what_is_not_sealed_is_not_read_and_closed() -> None:
    descriptor = os.memfd_create("open", os.MFD_ALLOW_SEALING)
    os.write(descriptor, bytes_of(stowed()))
    with pytest.raises(HandfastError, match="not sealed"):
        Unstowed(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_what_is_no_memfd_is_not_read(tmp_path: Path) -> None:
    for path in (tmp_path / "file", Path("/dev/null")):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        with pytest.raises(HandfastError, match="what was stowed"):
            Unstowed(descriptor)


def test_descriptors_are_told_apart_and_bulk_is_known() -> None:
    reading, writing = os.pipe()
    memory = os.memfd_create("bulk")
    copy = os.dup(reading)
    assert identify(reading) == identify(copy)
    assert identify(reading) != identify(memory)
    assert (is_bulk(memory), is_bulk(reading)) == (True, False)
    for each in (reading, writing, memory, copy):
        os.close(each)


@given(st.data())
def test_damage_is_an_error_or_something_of_the_right_form(data: st.DataObject) -> None:
    """Whatever is changed: no other exception, and nothing outside of what there is."""
    whole = bytearray(bytes_of(stowed()))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.just(len(whole)) | st.integers(0, len(whole)))
    with suppress(HandfastError):
        unstowed = Unstowed(sealed(bytes(whole[:end])))
        try:
            for message, _, identities in read(unstowed):
                assert len(message) <= len(whole)
                assert 0 < len(identities) <= 2
        finally:
            unstowed.close()


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_or_something_of_the_right_form(data: bytes) -> None:
    with suppress(HandfastError):
        Unstowed(sealed(data + struct.pack("!8sQI", b"handfast", 0, len(data)))).close()


@given(
    st.lists(
        st.tuples(
            st.binary(max_size=300),
            st.none() | st.binary(max_size=300),
            st.lists(
                st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
                min_size=1,
                max_size=2,
            ).map(tuple),
        ),
        max_size=5,
    )
)
def test_every_connection_survives(connections: list[Connection]) -> None:
    unstowed = Unstowed(stowed(connections))
    assert list(read(unstowed)) == connections
    unstowed.close()
