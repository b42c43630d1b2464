from __future__ import annotations

from handfast.observe.counters import Counters, merge


def test_every_count_starts_at_zero_and_is_named() -> None:
    counts = Counters().as_dict()
    assert set(counts) == set(Counters.__slots__)
    assert set(counts.values()) == {0}


def test_processes_are_added_up() -> None:
    one, two = Counters(), Counters()
    one.accepted, two.accepted, two.active = 2, 3, 1
    total = merge([one.as_dict(), two.as_dict()])
    assert (total["accepted"], total["active"], total["resumed"]) == (5, 1, 0)


def test_no_process_gives_zeros() -> None:
    assert merge([]) == Counters().as_dict()


def test_a_count_of_another_version_is_kept() -> None:
    assert merge([{"novel": 1}, {"novel": 2}])["novel"] == 3
