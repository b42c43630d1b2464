from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.errors import HandfastError
from handfast.handover.message import FORMAT
from handfast.process.child import Kind
from handfast.process.inheritance import (
    INHERITANCE,
    Inheritance,
    Place,
    Program,
    Relative,
    Socket,
    Waiter,
    claim,
    keep_to_ourselves,
    leave,
    pass_on,
    read,
)
from handfast.process.sealed import seal

OLD = Program("1.0", "/opt/old/bin/python", ("serve", "-c", "handfast.yaml"))
NEW = Program("", "/opt/new/bin/python", OLD.arguments)


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    found = [os.open(os.devnull, os.O_RDONLY) for _ in range(9)]
    yield found
    for each in found:
        os.close(each)


def inheritance(numbers: list[int]) -> Inheritance:
    return Inheritance(
        program=OLD,
        successor=NEW,
        began=12.5,
        started=1.5,
        listeners=(Socket("web", "127.0.0.1:443", 0, 3, numbers[0]),),
        spare=(Place("unix:/run/x", numbers[1]),),
        control=Place("/run/handfast.sock", numbers[2]),
        pidfile=Place("/run/handfast.pid", numbers[3]),
        channels=((numbers[4], numbers[5]),),
        relatives=(
            Relative(Kind.RELAY, 1, 99, numbers[6]),
            Relative(Kind.TEMPLATE, 0, 98, -1),
        ),
        waiters=(Waiter(numbers[7], "upgrade"),),
        demo=numbers[8],
        environment={"NOTIFY_SOCKET": "/run/systemd/notify"},
    )


def test_it_comes_back_as_it_was(descriptors: list[int]) -> None:
    made = inheritance(descriptors)
    left = leave(made)

    assert read(left) == made
    os.close(left)


def test_every_descriptor_in_it_is_passed_on_and_kept_again(descriptors: list[int]) -> None:
    made = inheritance(descriptors)
    assert sorted(made.descriptors()) == sorted(descriptors)

    pass_on(made)
    assert all(map(os.get_inheritable, descriptors))
    keep_to_ourselves(made)

    assert not any(map(os.get_inheritable, descriptors))


def test_a_descriptor_that_is_not_open_is_an_error() -> None:
    with pytest.raises(HandfastError, match="not open"):
        pass_on(inheritance([4000 + n for n in range(9)]))


def test_another_format_is_refused_with_both_numbers(descriptors: list[int]) -> None:
    left = leave(msgspec.structs.replace(inheritance(descriptors), format=FORMAT + 1))

    with pytest.raises(HandfastError, match=f"in format {FORMAT + 1}, and this one reads {FORMAT}"):
        read(left)
    os.close(left)


def test_what_the_next_version_adds_is_left_out_and_what_it_drops_has_its_default() -> None:
    few = {
        "format": FORMAT,
        "program": {"version": "9", "python": "/p", "arguments": [], "news": 1},
        "successor": {"version": "", "python": "/p", "arguments": []},
        "began": 1.0,
        "started": 1.0,
        "news": [1, 2, 3],
    }
    left = seal("few", msgspec.msgpack.encode(few))

    found = read(left)

    assert found.program.version == "9"
    assert found.listeners == ()
    os.close(left)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_an_inheritance_or_an_error(data: bytes) -> None:
    left = seal("any", data)

    with contextlib.suppress(HandfastError):
        read(left)
    os.close(left)


def test_what_is_no_memory_is_an_error() -> None:
    for descriptor in (4000, -1):
        with pytest.raises(HandfastError, match="cannot be read"):
            read(descriptor)


@pytest.mark.parametrize("text", ["", "x", "-1", "1 ", "\u0661", "0x3"])
def test_a_variable_that_is_no_number_is_none(text: str) -> None:
    assert claim({INHERITANCE: text}) == -1
    assert claim({}) == -1


def test_the_variable_is_for_this_process_alone() -> None:
    environment = {INHERITANCE: "7", "HOME": "/root"}

    assert claim(environment) == 7
    assert environment == {"HOME": "/root"}
