from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.transport.deadlines import Deadlines
from handfast.transport.loop import Callback, Loop, Timer


class Clock(Loop):
    """An event loop whose time the test sets, and that has timers only."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.timers: list[tuple[float, Timer]] = []
        self.errors: list[Exception] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callback) -> Timer:
        timer = Timer(callback)
        self.timers.append((when, timer))
        return timer

    def advance(self, until: float) -> None:
        """Let time pass, and run what becomes due, each timer at its time."""
        while due := [each for each in self.waiting() if each[0] <= until]:
            when, timer = min(due, key=lambda each: each[0])
            self.timers.remove((when, timer))
            self.now = max(self.now, when)
            assert timer.callback is not None
            try:
                timer.callback()
            except RuntimeError as error:
                self.errors.append(error)
        self.now = until

    def waiting(self) -> list[tuple[float, Timer]]:
        return [each for each in self.timers if each[1].callback is not None]


class Item:
    def __init__(self, on_expiry: Callable[[], None] = lambda: None) -> None:
        self.bucket = 0
        self.at: list[float] = []
        self.on_expiry = on_expiry

    def expired(self, now: float) -> None:
        self.at.append(now)
        self.on_expiry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deadlines(clock: Clock) -> Iterator[Deadlines]:
    deadlines = Deadlines(clock)
    yield deadlines
    deadlines.close()


def test_a_deadline_expires_once_and_never_early(clock: Clock, deadlines: Deadlines) -> None:
    item = Item()
    deadlines.set(item, 1002.34)

    clock.advance(1002.33)
    before = list(item.at)
    clock.advance(1100)

    assert before == []
    assert [round(at, 3) for at in item.at] == [1002.4]
    assert item.bucket == 0


def test_a_deadline_can_be_moved_both_ways(clock: Clock, deadlines: Deadlines) -> None:
    later, sooner = Item(), Item()
    deadlines.set(later, 1001)
    deadlines.set(sooner, 1009)

    deadlines.set(later, 1005)
    deadlines.set(sooner, 1003)
    clock.advance(1010)

    assert (later.at, sooner.at) == ([1005], [1003])


def test_a_dropped_deadline_never_expires(clock: Clock, deadlines: Deadlines) -> None:
    dropped, kept = Item(), Item()
    deadlines.set(dropped, 1001)
    deadlines.set(kept, 1001)

    deadlines.drop(dropped)
    deadlines.drop(dropped)
    clock.advance(1010)

    assert (dropped.at, kept.at) == ([], [1001])


def test_many_deadlines_take_one_timer(clock: Clock, deadlines: Deadlines) -> None:
    items = [Item() for _ in range(100)]
    for number, item in enumerate(items):
        deadlines.set(item, 1050 - number / 3)

    timers_used = len(clock.waiting())
    clock.advance(1100)

    assert timers_used == 1
    assert all(len(item.at) == 1 for item in items)
    assert clock.waiting() == []


def test_a_deadline_can_be_set_again_when_it_expires(clock: Clock, deadlines: Deadlines) -> None:
    item = Item(lambda: deadlines.set(item, clock.now + 1) if len(item.at) < 3 else None)
    deadlines.set(item, 1001)

    clock.advance(1100)

    assert item.at == [1001, 1002, 1003]


def test_one_that_expires_may_drop_another_of_the_same_time(
    clock: Clock, deadlines: Deadlines
) -> None:
    one = Item(lambda: deadlines.drop(other))
    other = Item(lambda: deadlines.drop(one))
    deadlines.set(one, 1001)
    deadlines.set(other, 1001)

    clock.advance(1100)

    assert len(one.at) + len(other.at) == 1


def test_a_deadline_in_the_past_expires_at_once(clock: Clock, deadlines: Deadlines) -> None:
    item = Item()

    deadlines.set(item, 3)
    clock.advance(1000.1)

    assert len(item.at) == 1


def test_a_past_deadline_set_by_one_that_expires_is_kept(
    clock: Clock, deadlines: Deadlines
) -> None:
    late = Item()
    first = Item(lambda: deadlines.set(late, 1000.5))
    deadlines.set(first, 1001)

    clock.advance(1100)

    assert len(first.at) == len(late.at) == 1


def test_an_error_in_one_does_not_stop_the_others(clock: Clock, deadlines: Deadlines) -> None:
    def fail() -> None:
        raise RuntimeError("of the item")

    items = [Item(), Item(fail), Item()]
    for item in items:
        deadlines.set(item, 1001)

    clock.advance(1100)

    assert [type(error) for error in clock.errors] == [RuntimeError]
    assert [len(item.at) for item in items] == [1, 1, 1]


def test_nothing_expires_after_close_and_items_can_still_be_dropped(
    clock: Clock, deadlines: Deadlines
) -> None:
    item = Item()
    deadlines.set(item, 1001)

    deadlines.close()
    deadlines.drop(item)
    clock.advance(1100)

    assert item.at == []


@given(times=st.lists(st.tuples(st.floats(1000, 1100), st.booleans()), max_size=30))
def test_each_deadline_expires_in_order_within_a_tenth_of_a_second(
    times: list[tuple[float, bool]],
) -> None:
    clock = Clock()
    deadlines = Deadlines(clock)
    items = [(Item(), when, dropped) for when, dropped in times]
    for item, when, _ in items:
        deadlines.set(item, when)
    for item, _, dropped in items:
        if dropped:
            deadlines.drop(item)

    clock.advance(1200)

    for item, when, dropped in items:
        assert len(item.at) == (not dropped)
        assert all(when - 0.001 <= at <= when + 0.101 for at in item.at)
