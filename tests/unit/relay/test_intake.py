"""Sessions wait in the channel while descriptors are few, and none is lost before the very last."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from handfast.errors import BackendError
from handfast.relay.dial import Dial
from handfast.relay.intake import CALM_SECONDS, PAUSE_SECONDS
from handfast.transport.loop import Loop
from unit.relay.relaying import (
    LOCAL,
    Relaying,
    listener_of,
    listening,
    plan_of,
    relaying,
    service_of,
)

MANY = 400


@contextmanager
def at_most(descriptors: int) -> Iterator[None]:
    """Have this process allowed so many descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def in_use() -> int:
    """Give the lowest number that is free."""
    probe = os.dup(0)
    os.close(probe)
    return probe


@pytest.fixture
def silent() -> Iterator[Relaying]:
    """A relay with little room, whose connections stay in it: their target does not accept."""
    with listening() as target, at_most(MANY):
        plan = plan_of(listener_of(service_of(target)))
        with relaying(plan) as running:
            yield running


@contextmanager
def crowded(room: int) -> Iterator[None]:
    """Leave so many descriptors below the relay's mark, which is at three quarters."""
    held = [os.dup(0)]
    while held[-1] < MANY * 3 // 4 - room - 1:
        held.append(os.dup(0))
    try:
        yield
    finally:
        for each in held:
            os.close(each)


def test_few_descriptors_leave_sessions_in_the_channel_until_there_are_more(
    silent: Relaying,
) -> None:
    with crowded(2):
        clients = [silent.client() for _ in range(4)]
        taken = len(silent.connections)
        silent.loop.advance(PAUSE_SECONDS * 5)
        assert len(silent.connections) == taken < len(clients)

    silent.loop.advance(PAUSE_SECONDS)
    silent.until(lambda: len(silent.connections) == len(clients))
    silent.loop.advance(CALM_SECONDS)
    assert [each["state"] for each in silent.events("accepting")] == ["paused", "resumed"]
    assert silent.events("system_error") == []


def test_a_drain_takes_what_waits_for_descriptors_before_the_relay_ends(silent: Relaying) -> None:
    with crowded(2):
        clients = [silent.client() for _ in range(4)]
        silent.relay.drain()
        silent.relay.end_all("to make room")
        assert not silent.drained

    silent.loop.advance(PAUSE_SECONDS)
    assert silent.relay.counters.relayed == len(clients)
    silent.relay.end_all("the test is over")
    assert silent.drained


def test_a_session_that_finds_no_descriptor_is_told_of_and_the_relay_recovers(
    silent: Relaying,
) -> None:
    silent.relay.intake.pause()
    silent.client()
    silent.loop.advance(PAUSE_SECONDS)
    with at_most(in_use()):
        silent.loop.turn()
    assert silent.event("system_error")["error_msg"] == "a hand-over was refused"
    assert silent.connections == []

    silent.client()
    silent.loop.advance(PAUSE_SECONDS)
    silent.until(lambda: len(silent.connections) == 1)


def test_a_dial_without_a_descriptor_says_nothing_about_the_target() -> None:
    errors: list[BackendError] = []
    loop = Loop()
    dial = Dial(loop, [(socket.AF_INET, (LOCAL, 1))], lambda *_: None, errors.append)

    with at_most(in_use()):
        dial.start()

    assert [each.ours for each in errors] == [True]
    loop.close()
