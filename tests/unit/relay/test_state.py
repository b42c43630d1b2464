from __future__ import annotations

import pytest

from handfast.errors import HandfastBug
from handfast.relay.state import NEXT, Event, State, after

ENDED = (State.CLIENT_DISCONNECTED, State.SERVER_DISCONNECTED)


@pytest.mark.parametrize(
    ("first", "second"),
    [(Event.CLIENT_CLOSED, Event.SERVER_CLOSED), (Event.SERVER_CLOSED, Event.CLIENT_CLOSED)],
)
def test_a_connection_ends_when_both_sides_have_closed(first: Event, second: Event) -> None:
    state = State.CLIENT_CONNECTED
    passed = []

    for event in (Event.DIALLED, Event.CONNECTED, first, second):
        state = after(state, event)
        passed.append(state)

    assert passed[:2] == [State.SERVER_CONNECTING, State.READY]
    assert passed[2] in ENDED
    assert passed[3] is State.CLOSED


@pytest.mark.parametrize("state", State)
def test_a_failure_closes_from_everywhere(state: State) -> None:
    assert after(state, Event.FAILED) is State.CLOSED


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_a_move_is_in_the_table_or_our_bug(state: State, event: Event) -> None:
    if (state, event) in NEXT:
        assert after(state, event) is NEXT[state, event]
    else:
        with pytest.raises(HandfastBug, match=event.value):
            after(state, event)


def test_nothing_but_a_failure_leads_out_of_closed() -> None:
    assert [event for state, event in NEXT if state is State.CLOSED] == [Event.FAILED]


def test_no_side_closes_twice() -> None:
    assert (State.CLIENT_DISCONNECTED, Event.CLIENT_CLOSED) not in NEXT
    assert (State.SERVER_DISCONNECTED, Event.SERVER_CLOSED) not in NEXT


def test_every_state_can_be_reached_and_left_for_closed() -> None:
    reached = {State.CLIENT_CONNECTED}
    while more := {after for (before, _), after in NEXT.items() if before in reached} - reached:
        reached |= more

    assert reached == set(State)
