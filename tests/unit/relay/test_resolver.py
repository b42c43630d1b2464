from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from handfast.relay.resolver import Endpoint, interleave

V4, V6 = socket.AF_INET, socket.AF_INET6


def test_the_families_alternate_and_the_first_stays_first() -> None:
    found: list[Endpoint] = [(V6, "a"), (V6, "b"), (V6, "c"), (V4, "d"), (V4, "e")]

    assert [name for _, name in interleave(found)] == ["a", "d", "b", "e", "c"]
    assert [name for _, name in interleave(found[::-1])] == ["e", "c", "d", "b", "a"]


def test_one_family_keeps_its_order() -> None:
    found: list[Endpoint] = [(V4, "a"), (V4, "b")]

    assert interleave(found) == found
    assert interleave([]) == []


endpoints = st.lists(st.sampled_from([V4, V6]), max_size=8).map(
    lambda families: [(family, number) for number, family in enumerate(families)]
)


@given(found=endpoints)
def test_no_address_is_lost_and_each_family_keeps_its_order(found: list[Endpoint]) -> None:
    ordered = interleave(found)

    assert sorted(ordered, key=lambda each: each[1]) == found
    for family in (V4, V6):
        assert [e for e in ordered if e[0] == family] == [e for e in found if e[0] == family]
