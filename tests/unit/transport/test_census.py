from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.transport.census import BUCKETS, LISTENERS, Census, Column

IP = "192.0.2.1"
V4 = st.ip_addresses(v=4).map(str)


def in_child(work: object) -> None:
    """Run `work` in a forked process, to its end."""
    pid = os.fork()
    if not pid:
        try:
            work()  # type: ignore[operator]  # a function of no arguments
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def test_nothing_is_held_at_first() -> None:
    census = Census(3)
    place = census.place(0, IP)

    assert (census.connections(), census.handshakes()) == (0, 0)
    assert (census.of_listener(place), census.of_source(place), census.rate(place, 0.0)) == (
        0,
        0,
        0,
    )


def test_what_every_process_holds_is_added_up() -> None:
    census = Census(3)
    columns = [Column(census, number) for number in range(3)]

    for column in columns:
        place = column.enter(7, IP)
        column.begin_handshake()
    columns[1].enter(8, IP)
    columns[2].end_handshake()

    assert (census.connections(), census.handshakes()) == (4, 2)
    assert (census.of_listener(place), census.of_source(place)) == (3, 4)


def test_a_process_counts_for_those_that_were_forked_before_it() -> None:
    census = Census(2)
    column = Column(census, 1)

    in_child(lambda: column.enter(3, IP))

    place = census.place(3, IP)
    assert (census.connections(), census.of_listener(place), census.of_source(place)) == (1, 1, 1)


def test_concurrent_processes_lose_no_count() -> None:
    census, times = Census(4), 2000
    places = census.place(1, IP)
    children = []
    for number in range(4):
        pid = os.fork()
        if not pid:
            column = Column(census, number)
            for _ in range(times):
                column.hold(places)
                column.hold(places)
                column.leave(places)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)

    assert census.connections() == census.of_source(places) == census.of_listener(places)
    assert census.connections() == 4 * times


def test_what_a_dead_process_held_is_forgotten_and_the_rest_is_not() -> None:
    census = Census(2)
    dead, alive = Column(census, 0), Column(census, 1)
    for column in (dead, alive):
        place = column.enter(1, IP)
        column.begin_handshake()
        column.started(place, 5.0)

    census.clear(0)

    assert (census.connections(), census.handshakes()) == (1, 1)
    assert (census.of_listener(place), census.of_source(place), census.rate(place, 5.0)) == (
        1,
        1,
        1,
    )


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), V4), max_size=30), st.randoms())
def test_the_table_is_empty_when_all_have_left_in_any_order(
    arrivals: list[tuple[int, int, str]], order: object
) -> None:
    census = Census(2)
    columns = [Column(census, number) for number in range(2)]
    held = [(columns[who], columns[who].enter(listener, ip)) for who, listener, ip in arrivals]
    census.set_prefixes(8, 48)
    order.shuffle(held)  # type: ignore[attr-defined]  # a random.Random

    for column, place in held:
        column.leave(place)

    assert not any(cell for n in range(2) for cell in census.column(n))


@given(st.lists(V4, max_size=60))
def test_a_source_is_never_counted_too_low(addresses: list[str]) -> None:
    census = Census(1)
    column = Column(census, 0)
    for ip in addresses:
        column.enter(0, ip)

    for ip in addresses:
        assert census.of_source(census.place(0, ip)) >= addresses.count(ip)


def test_strangers_hardly_add_to_the_count_of_a_source() -> None:
    """A row has 0.6 of 10,000 sources; that both have 6 or more is a chance of one in 10^8."""
    census = Census(1)
    column = Column(census, 0)
    for number in range(10_000):
        column.enter(0, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")

    assert census.of_source(census.place(0, IP)) < 6


def test_the_places_of_a_source_differ_from_run_to_run() -> None:
    assert len({Census(1).place(0, IP) for _ in range(4)}) > 1


def test_a_source_is_a_network_of_the_bits_that_were_set_last() -> None:
    census = Census(1)
    column = Column(census, 0)
    first = column.enter(0, "2001:db8::1")

    assert census.of_source(census.place(0, "2001:db8::2")) == 1
    census.set_prefixes(24, 128)
    second = column.enter(0, "192.0.2.1")
    assert census.of_source(census.place(0, "192.0.2.9")) == 1
    assert census.of_source(census.place(0, "2001:db8::2")) == 0
    assert census.of_source(first) == census.of_source(second) == 1


def test_prefixes_reach_a_process_that_was_forked_before() -> None:
    census = Census(1)
    column = Column(census, 0)
    ready, go = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(ready, 1)
        column.enter(0, "192.0.2.1")
        os._exit(0)
    census.set_prefixes(24, 64)
    os.write(go, b"x")
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(go)

    assert census.of_source(census.place(0, "192.0.2.200")) == 1


def test_a_client_without_an_address_is_of_no_source() -> None:
    census = Census(1)
    column = Column(census, 0)
    place = column.enter(2, "")
    column.started(place, 1.0)

    assert (census.of_source(place), census.rate(place, 1.0)) == (0, 0)
    assert (census.connections(), census.of_listener(place)) == (1, 1)
    column.leave(place)
    assert not any(census.column(0))


def test_a_listener_number_beyond_the_rows_shares_one() -> None:
    census = Census(1)
    Column(census, 0).enter(LISTENERS + 5, IP)

    assert census.of_listener(census.place(5, IP)) == 1


@pytest.mark.parametrize("second", [0, 1, 65_535, 65_536, 1_000_000])
def test_the_rate_counts_the_last_second(second: int) -> None:
    census = Census(2)
    columns = [Column(census, number) for number in range(2)]
    place = census.place(0, IP)
    for column in columns:
        for _ in range(5):
            column.started(place, second + 0.5)

    assert census.rate(place, second + 0.9) == 10
    assert census.rate(place, second + 1.0) == 10
    assert census.rate(place, second + 1.25) == 7.5
    assert census.rate(place, second + 1.999) < 0.1
    assert census.rate(place, second + 2.0) == 0
    assert census.rate(place, second + 60.0) == 0


def test_a_new_second_begins_at_one() -> None:
    census = Census(1)
    column = Column(census, 0)
    place = census.place(0, IP)
    column.started(place, 1.0)
    column.started(place, 3.0)

    assert census.rate(place, 3.5) == 1


def test_the_count_of_a_second_stops_at_its_highest() -> None:
    census = Census(1)
    column = Column(census, 0)
    place = census.place(0, IP)
    for _ in range(65_537):
        column.started(place, 9.0)

    assert census.rate(place, 9.0) == 65_535


def test_a_clock_that_jumps_neither_breaks_nor_counts_the_past() -> None:
    census = Census(1)
    column = Column(census, 0)
    place = census.place(0, IP)
    column.started(place, 1_000.0)

    assert census.rate(place, 10.0) == 0
    column.started(place, 10.0)
    assert census.rate(place, 10.0) == 1


def test_rows_of_the_two_tables_and_of_the_rate_do_not_overlap() -> None:
    census = Census(1)
    column = Column(census, 0)
    last = (BUCKETS - 1) << 10 | (BUCKETS - 1) << 24 | (LISTENERS - 1)
    column.hold(last)
    column.started(last, 1.0)

    cells = census.column(0)
    assert sum(1 for cell in cells if cell) == 6
    assert cells[-1] == 1 << 16 | 1
    assert (census.connections(), census.handshakes()) == (1, 0)


@pytest.mark.parametrize("rubbish", [0, 0xFFFF_FFFF])
def test_what_a_process_that_was_taken_over_writes_makes_no_other_fail(rubbish: int) -> None:
    census = Census(2)
    column = Column(census, 0)
    place = column.enter(0, IP)
    column.begin_handshake()
    census.column(0)[:] = memoryview(rubbish.to_bytes(4, "little") * len(census.column(0))).cast(
        "I"
    )
    census.set_prefixes(rubbish, rubbish)

    column.leave(place)
    column.end_handshake()
    for address in (IP, "2001:db8::1", ""):
        place = column.enter(0, address)
        column.started(place, 1.0)
        census.rate(place, 1.0)
        census.of_source(place)
        column.hold(place)
