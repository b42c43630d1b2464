from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from handfast.transport.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_stop_before_the_run_ends_it_and_the_next_run_goes_on(loop: Loop) -> None:
    called: list[str] = []
    loop.stop()
    loop.run()
    loop.call_soon(lambda: called.append("soon"))
    loop.call_later(0, loop.stop)

    loop.run()

    assert called == ["soon"]


def test_one_that_asks_to_be_called_again_and_again_does_not_keep_the_others_waiting(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    order: list[str] = []

    def again() -> None:
        order.append("again")
        if len(order) < 1000:
            loop.call_soon(again)

    loop.call_soon(again)
    loop.add_reader(ours.fileno(), loop.stop)
    loop.run()

    assert order == ["again"]
    loop.remove_reader(ours.fileno())
    loop.call_later(0, loop.stop)
    loop.run()
    assert len(order) < 5


def test_what_is_watched_for_changes_is_called_back_once_for_each(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    called = 0

    def read() -> None:
        nonlocal called
        called += 1  # and leave it there

    def turns() -> int:
        before = called
        for _ in range(5):
            loop.call_later(0.001, loop.stop)
            loop.run()
        return called - before

    loop.watch_edges(ours.fileno())
    assert not loop.watches_edges(ours.fileno())  # there is nothing to be called
    loop.add_reader(ours.fileno(), read)
    theirs.send(b"x")
    assert turns() >= 5
    loop.watch_edges(ours.fileno())
    assert turns() == 1
    assert turns() == 0
    theirs.send(b"y")
    assert turns() == 1
    loop.add_writer(ours.fileno(), lambda: loop.remove_writer(ours.fileno()))
    assert turns() >= 1  # any change of what is watched looks once more
    assert turns() == 0

    loop.remove_reader(ours.fileno())
    assert not loop.watches_edges(ours.fileno())
    loop.add_reader(ours.fileno(), read)
    assert turns() >= 5


def test_a_reader_and_a_writer_of_one_descriptor_are_called_apart(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    called: list[str] = []

    def read() -> None:
        called.append("read")
        loop.remove_reader(ours.fileno())
        loop.stop()

    def write() -> None:
        called.append("write")
        loop.remove_writer(ours.fileno())
        theirs.send(b"x")

    loop.add_reader(ours.fileno(), read)
    loop.add_writer(ours.fileno(), write)
    loop.run()

    assert called == ["write", "read"]


def test_an_event_is_not_given_to_the_next_owner_of_its_number(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Both are readable in one turn; the first to be called puts a quiet socket in the other's."""
    ours, theirs = pair
    first, second = socket.socketpair()
    quiet, far = socket.socketpair()
    called: list[str] = []

    def replace(other: socket.socket) -> None:
        called.append("read")
        loop.remove_reader(other.fileno())
        os.dup2(quiet.fileno(), other.fileno())
        loop.add_reader(other.fileno(), lambda: called.append("stale"))
        loop.call_soon(loop.stop)

    with first, second, quiet, far:
        theirs.send(b"x")
        second.send(b"x")
        loop.add_reader(ours.fileno(), lambda: replace(first))
        loop.add_reader(first.fileno(), lambda: replace(ours))
        loop.run()

    assert called == ["read"]


def test_timers_come_in_order_and_cancelled_ones_do_not(loop: Loop) -> None:
    called: list[int] = []
    loop.call_later(0.02, loop.stop)
    loop.call_later(0.01, lambda: called.append(2))
    loop.call_later(0.005, lambda: called.append(1))
    loop.call_later(0.001, lambda: called.append(0)).cancel()

    loop.run()

    assert called == [1, 2]


def test_an_error_goes_to_its_handler_and_the_loop_goes_on() -> None:
    errors: list[Exception] = []
    loop = Loop(on_error=errors.append)

    def fail() -> None:
        raise ValueError("of a callback")

    loop.call_soon(fail)
    loop.call_later(0.001, loop.stop)
    loop.run()
    loop.close()

    assert [str(error) for error in errors] == ["of a callback"]


def test_without_a_handler_an_error_ends_the_run(loop: Loop) -> None:
    def fail() -> None:
        raise ValueError("of a callback")

    loop.call_soon(fail)

    with pytest.raises(ValueError, match="of a callback"):
        loop.run()
