from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.process.rebalancing import Move, moves

counts = st.dictionaries(st.integers(0, 40), st.integers(0, 20_000), min_size=1, max_size=40)


@given(before=counts)
def test_afterwards_no_relay_is_more_than_one_connection_away_from_another(
    before: dict[int, int],
) -> None:
    after = dict(before)
    for move in moves(before):
        assert move.count > 0
        after[move.giver] -= move.count
        after[move.taker] += move.count

    assert sum(after.values()) == sum(before.values())
    assert max(after.values()) - min(after.values()) <= 1


@given(before=counts)
def test_nobody_both_gives_and_takes(before: dict[int, int]) -> None:
    planned = moves(before)

    assert not {each.giver for each in planned} & {each.taker for each in planned}
    assert len(planned) < max(2, len(before))


@pytest.mark.parametrize("before", [{0: 5}, {0: 3, 1: 3}, {0: 3, 1: 4, 2: 3}])
def test_what_is_even_stays(before: dict[int, int]) -> None:
    assert moves(before) == []


def test_a_new_relay_gets_its_share_of_all_others() -> None:
    assert moves({0: 6, 1: 6, 2: 0}) == [Move(0, 2, 2), Move(1, 2, 2)]
