from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.observe.counters import (
    BOUNDS,
    NUMBERS,
    OTHER,
    Counters,
    Counts,
    Gauge,
    Histogram,
    merge,
    total,
)

MODERN = ("TLSv1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768")
_decoder = msgspec.msgpack.Decoder(Counts)


def travelled(counts: Counts) -> Counts:
    """Give what arrives of counts that were sent."""
    return _decoder.decode(msgspec.msgpack.encode(counts))


def busy() -> Counters:
    """Give counters of everything that can be counted."""
    counters = Counters()
    counters.accept(1)
    counters.accept(1)
    counters.grant(MODERN, resumed=True, seconds=0.004)
    counters.fail("denied", "no_rule")
    counters.fail("failed", "timeout")
    counters.refuse("rate", 5)
    counters.connect_seconds.add(0.2)
    counters.gauges = (Gauge("target_up", (("target", "tcp://a:1"),), 1.0),)
    return counters


def test_every_number_starts_at_zero_and_is_named() -> None:
    assert Counters().counts().numbers == dict.fromkeys(NUMBERS, 0)


def test_all_that_was_counted_arrives() -> None:
    counts = travelled(busy().counts())

    assert counts == busy().counts()
    assert counts.listeners == {1: 2}
    assert counts.granted == {MODERN: 1}
    assert counts.failures == {("denied", "no_rule"): 1, ("failed", "timeout"): 1}
    assert counts.refused == {"rate": 5}
    names = ("accepted", "handshakes_granted", "handshakes_denied", "handshakes_failed", "resumed")
    assert [counts.numbers[name] for name in names] == [2, 1, 1, 1, 1]


def test_processes_are_added_up_but_for_their_gauges() -> None:
    both = total([busy().counts(), travelled(busy().counts())])

    assert both.numbers["accepted"] == 4
    assert (both.granted, both.refused, both.listeners) == ({MODERN: 2}, {"rate": 10}, {1: 4})
    assert both.failures == {("denied", "no_rule"): 2, ("failed", "timeout"): 2}
    assert sum(both.handshake_seconds.counts) == sum(both.connect_seconds.counts) == 2
    assert both.connect_seconds.seconds == pytest.approx(0.4)
    assert both.gauges == ()


def test_adding_up_changes_no_part() -> None:
    part = busy().counts()

    total([part, part])

    assert part == busy().counts()


def test_no_process_gives_zeros() -> None:
    assert total([]) == Counters().counts()


def test_a_number_of_another_version_is_kept() -> None:
    assert merge([{"novel": 1}, {"novel": 2}])["novel"] == 3


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (-0.1, 0), (0.001, 0), (0.0011, 1), (10.0, len(BOUNDS) - 1), (11.0, len(BOUNDS))],
)
def test_a_bucket_has_what_is_within_its_bound(seconds: float, bucket: int) -> None:
    histogram = Histogram()

    histogram.add(seconds)

    assert histogram.counts.index(1) == bucket
    assert histogram.seconds == max(0.0, seconds)


def test_peers_that_fail_in_ever_new_ways_do_not_fill_the_memory() -> None:
    counters = Counters()

    for number in range(10_000):
        counters.fail("denied", f"reason_{number}")

    counts = travelled(counters.counts())
    assert counts.numbers["handshakes_denied"] == sum(counts.failures.values()) == 10_000
    assert counts.failures["denied", OTHER] > 9000


def test_what_is_not_counted_as_it_happens_is_brought_up_to_date() -> None:
    counters = Counters()

    def refresh() -> None:
        counters.bytes_in = 7

    counters.refresh = refresh

    assert counters.counts().numbers["bytes_in"] == 7


def test_gauges_of_any_labels_and_number_arrive_in_one_message() -> None:
    counters = Counters()
    labels = (("target", "unix:/ü\n" + "x" * 300),)
    counters.gauges = tuple(Gauge("target_up", labels, True) for _ in range(5000))

    sent = msgspec.msgpack.encode(counters.counts())

    assert len(sent) < 1 << 16
    gauge = _decoder.decode(sent).gauges[0]
    assert gauge == Gauge("target_up", (("target", "unix:/??" + "x" * 152),), 1.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"numbers": {"accepted": -1}},
        {"numbers": {"a\nb": 1}},
        {"refused": {"x" * 200: 1}},
        {"refused": {str(number): 1 for number in range(100)}},
        {"handshake_seconds": {"counts": [1], "seconds": 1.0}},
        {"handshake_seconds": {"counts": [0] * 14, "seconds": float("inf")}},
        {"handshake_seconds": {"counts": [0] * 14, "seconds": float("nan")}},
        {"gauges": [["Target up", [], 1.0]]},
        {"gauges": [["up", [['a="', "b"]], 1.0]]},
        {"gauges": [["up", [], float("nan")]]},
    ],
    ids=["negative", "newline", "long", "many", "buckets", "inf", "nan", "name", "label", "gauge"],
)
def test_a_process_cannot_make_others_show_what_it_likes(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        _decoder.decode(msgspec.msgpack.encode(fields))


@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_histogram_counts_everything_once(durations: list[float]) -> None:
    histogram = Histogram()

    for each in durations:
        histogram.add(each)

    assert sum(histogram.counts) == len(durations)
    assert histogram.seconds == pytest.approx(sum(durations))
