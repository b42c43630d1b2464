from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from handfast.config import Timeouts
from handfast.relay.patience import NEVER, deadline, overdue
from handfast.relay.state import State

LIMITED = Timeouts(idle=10, half_closed=5, lifetime=100)
HALF = State.CLIENT_DISCONNECTED


def test_the_earliest_limit_counts() -> None:
    assert deadline(LIMITED, State.READY, 0, 50) == 60
    assert deadline(LIMITED, HALF, 0, 50) == 55
    assert deadline(LIMITED, State.READY, 0, 95) == 100


def test_without_limits_there_is_no_deadline() -> None:
    for_ever = Timeouts(idle=0, half_closed=0, lifetime=0)

    assert deadline(for_ever, State.READY, 0, 50) == NEVER
    assert overdue(for_ever, State.READY, 0, 50, 1e9) == ""


def test_each_limit_has_its_reason() -> None:
    assert overdue(LIMITED, State.READY, 0, 50, 60) == "idle for 10 s"
    assert overdue(LIMITED, HALF, 0, 50, 55) == "half-closed too long"
    assert overdue(LIMITED, State.READY, 0, 99, 100) == "open for 100 s, which is the limit"


limits = st.sampled_from([0.0, 0.5, 7.0, 100.0])
times = st.floats(0, 1000)


@given(
    timeouts=st.builds(Timeouts, idle=limits, half_closed=limits, lifetime=limits),
    state=st.sampled_from([State.READY, State.CLIENT_DISCONNECTED, State.SERVER_DISCONNECTED]),
    accepted=times,
    touched=times,
)
def test_what_is_overdue_is_so_from_its_deadline_on(
    timeouts: Timeouts, state: State, accepted: float, touched: float
) -> None:
    when = deadline(timeouts, state, accepted, touched)

    if when == NEVER:
        assert not overdue(timeouts, state, accepted, touched, 1e12)
    else:
        assert overdue(timeouts, state, accepted, touched, when)
        assert not overdue(timeouts, state, accepted, touched, when - 0.25)
