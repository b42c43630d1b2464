"""Whose turn it is: balancing, limits, and what failures do to it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.config import Balance, Service, Target, TargetTls, TcpAddress
from handfast.errors import BackendError
from handfast.observe import events
from handfast.relay.targets import Pool, Targets, TargetState

REFUSED = BackendError("cannot connect to 10.0.0.1 port 80", description="Connection refused")


class World:
    """The targets of one relay, with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.events: list[events.Event] = []
        self.targets = Targets(lambda: self.now, self.events.append)

    def pool(self, *targets: Target, balance: Balance = "round-robin", relays: int = 1) -> Pool:
        service = Service(targets=targets, balance=balance)
        self.targets.configure([service], relays)
        return self.targets.pool(service)


def target(number: int, *, limit: int = 0, tls: TargetTls | None = None) -> Target:
    address = TcpAddress(host=f"10.0.0.{number}", port=80)
    return Target(address=address, tls=tls, max_connections=limit)


def picked(pool: Pool, *tried: TargetState) -> TargetState:
    chosen = pool.pick(tried)
    assert chosen is not None
    return chosen


def host(state: TargetState) -> str:
    assert isinstance(state.address, TcpAddress)
    return state.address.host


def fail(pool: Pool) -> str:
    """Let the next connection fail; give where it went."""
    state = picked(pool)
    state.failed(REFUSED)
    state.release()
    return host(state)


@pytest.fixture
def world() -> World:
    return World()


def test_round_robin_takes_each_in_turn(world: World) -> None:
    pool = world.pool(target(1), target(2), target(3))

    hosts = [host(picked(pool)) for _ in range(6)]

    assert hosts == ["10.0.0.1", "10.0.0.2", "10.0.0.3"] * 2


def test_least_connections_takes_the_one_with_the_fewest(world: World) -> None:
    pool = world.pool(target(1), target(2), target(3), balance="least-connections")
    held = [picked(pool) for _ in range(6)]
    held[1].release()
    held[4].release()

    assert host(held[1]) == "10.0.0.2"
    assert host(picked(pool)) == "10.0.0.2"
    assert host(picked(pool)) == "10.0.0.2"
    assert Counter(host(picked(pool)) for _ in range(3)).keys() == {
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
    }


def test_a_target_that_failed_gets_nothing_for_a_second(world: World) -> None:
    pool = world.pool(target(1), target(2))
    assert fail(pool) == "10.0.0.1"

    during = {host(picked(pool)) for _ in range(4)}
    world.now += 1.0
    after = {host(picked(pool)) for _ in range(2)}

    assert during == {"10.0.0.2"}
    assert after == {"10.0.0.1", "10.0.0.2"}


def test_when_the_pause_is_over_one_connection_tries_and_the_others_wait_for_it(
    world: World,
) -> None:
    pool = world.pool(target(1), target(2))
    fail(pool)
    world.now += 1.0

    hosts = [host(picked(pool)) for _ in range(5)]

    assert Counter(hosts) == {"10.0.0.1": 1, "10.0.0.2": 4}


def test_a_trial_that_succeeds_clears_the_failure(world: World) -> None:
    pool = world.pool(target(1), target(2))
    fail(pool)
    world.now += 1.0
    trial = next(state for state in (picked(pool), picked(pool)) if not state.up)

    trial.succeeded()

    assert Counter(host(picked(pool)) for _ in range(4)) == {"10.0.0.1": 2, "10.0.0.2": 2}


def test_a_trial_whose_client_left_leaves_the_next_to_another(world: World) -> None:
    pool = world.pool(target(1), target(2))
    fail(pool)
    world.now += 1.0
    trial = next(state for state in (picked(pool), picked(pool)) if not state.up)

    trial.release()

    assert "10.0.0.1" in {host(picked(pool)) for _ in range(2)}


def test_the_pause_doubles_to_half_a_minute(world: World) -> None:
    pool = world.pool(target(1))
    pauses = []
    for _ in range(7):
        fail(pool)
        [state] = world.targets.states()
        pauses.append(state.until - world.now)
        world.now = state.until

    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_connections_that_fail_together_make_the_pause_longer_once(world: World) -> None:
    pool = world.pool(target(1))
    together = [picked(pool) for _ in range(100)]

    for state in together:
        state.failed(REFUSED)
        state.release()

    assert together[0].until == world.now + 1.0


def test_when_all_are_down_the_one_that_failed_longest_ago_is_tried(world: World) -> None:
    pool = world.pool(target(1), target(2), target(3))
    for _ in range(3):
        fail(pool)
        world.now += 0.1

    again = []
    for _ in range(4):
        again.append(fail(pool))
        world.now += 0.01

    assert again == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.1"]


def test_what_was_tried_is_not_picked_again_even_if_nothing_else_is_left(world: World) -> None:
    pool = world.pool(target(1), target(2))

    first = picked(pool)
    second = picked(pool, first)

    assert {host(first), host(second)} == {"10.0.0.1", "10.0.0.2"}
    assert pool.pick((first, second)) is None


def test_a_full_target_is_passed_over_and_when_all_are_full_there_is_none(world: World) -> None:
    pool = world.pool(target(1, limit=1), target(2, limit=2))
    held = [picked(pool) for _ in range(3)]

    assert Counter(map(host, held)) == {"10.0.0.1": 1, "10.0.0.2": 2}
    assert pool.pick() is None
    held[0].release()
    assert pool.pick() is held[0]


@given(limit=st.integers(1, 100), relays=st.integers(1, 16))
def test_all_relays_together_keep_the_limit_or_one_connection_each(limit: int, relays: int) -> None:
    total = 0
    for _ in range(relays):
        pool = World().pool(target(1, limit=limit), relays=relays)
        while pool.pick() is not None:
            total += 1

    assert total <= max(limit, relays)
    assert total > limit - relays


def test_a_reload_keeps_what_is_known_of_a_target_that_stays(world: World) -> None:
    pool = world.pool(target(1), target(2))
    fail(pool)
    busy = picked(pool)

    after = world.pool(target(3), target(1), target(2, limit=1))

    assert {host(picked(after)) for _ in range(3)} == {"10.0.0.3"}
    assert busy.active == 1


def test_with_other_tls_it_is_another_target(world: World) -> None:
    fail(world.pool(target(1)))

    after = world.pool(target(1, tls=TargetTls()))

    assert picked(after).up


def test_a_target_that_left_is_forgotten_when_its_last_connection_was(world: World) -> None:
    held = picked(world.pool(target(1)))
    world.pool(target(2))
    during = len(list(world.targets.states()))
    held.release()
    world.pool(target(2))

    assert (during, len(list(world.targets.states()))) == (2, 1)


def test_services_share_what_is_known_of_a_target(world: World) -> None:
    one = Service(targets=(target(1), target(2)))
    other = Service(targets=(target(1),), send_proxy="v2")
    world.targets.configure([one, other], 1)

    fail(world.targets.pool(other))

    assert {host(picked(world.targets.pool(one))) for _ in range(3)} == {"10.0.0.2"}


def test_going_down_and_coming_back_are_one_event_each(world: World) -> None:
    pool = world.pool(target(1))
    for _ in range(3):
        fail(pool)
        world.now += 60
    for _ in range(2):
        picked(pool).succeeded()

    assert world.events == [
        events.Target(
            state="down",
            address="10.0.0.1:80",
            error_msg="cannot connect to 10.0.0.1 port 80",
            error_desc="Connection refused",
        ),
        events.Target(state="up", address="10.0.0.1:80"),
    ]
    assert [event.level for event in world.events] == [events.Level.WARN, events.Level.INFO]
