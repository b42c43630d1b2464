"""Generations end in time, whatever their processes do; and who waits for an answer gets one."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from conftest import Certificates
from handfast.config import Config, Timeouts
from handfast.process import generation as one_generation
from handfast.process.messages import Ready, send
from handfast.process.template import Engines
from unit.process.household import Door, door, is_running, obedient_acceptor, pids_of


@pytest.fixture
def front(certificates: Certificates) -> Iterator[Door]:
    with door(certificates) as made:
        yield made


def deaf(number: int, column: int, control: socket.socket, engines: Engines) -> int:
    """An acceptor that serves, and obeys nobody."""
    send(control, Ready())
    while True:
        signal.pause()


def hung_up(number: int, column: int, control: socket.socket, engines: Engines) -> int:
    """An acceptor that serves, and then cannot be told anything any more."""
    send(control, Ready())
    control.close()
    while True:
        signal.pause()


def nonsensical(number: int, column: int, control: socket.socket, engines: Engines) -> int:
    """An acceptor that serves, and then says what is no message."""
    send(control, Ready())
    control.send(b"nonsense")
    while True:
        signal.pause()


def hasty(front: Door) -> Config:
    assert isinstance(front.config, Config)
    return replace(front.config, timeouts=Timeouts(handshake=0.1))


def test_an_old_acceptor_that_does_not_obey_is_killed_when_its_time_is_over(
    front: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_generation, "_LATE_SECONDS", 0.1)
    monkeypatch.setattr(one_generation, "_KILL_SECONDS", 0.1)
    front.config = hasty(front)
    front.accept = deaf
    front.start()
    old = pids_of(front.current)
    front.accept = obedient_acceptor

    assert front.reload() is None

    front.until(lambda: not any(is_running(pid) for pid in old))


@pytest.mark.parametrize("accept", [hung_up, nonsensical])
def test_an_acceptor_that_cannot_be_talked_to_is_killed_by_its_template(
    front: Door, accept: object
) -> None:
    front.start()
    old = front.current.template.pid
    front.accept = accept  # type: ignore[assignment]  # parametrize knows no types
    front.ask()

    front.until(lambda: "killed by signal 9" in front.text())

    assert front.generations.current is not None
    assert is_running(old) or front.current.number == 2
    assert is_running(os.getpid())


def test_a_reload_that_is_overtaken_by_the_end_is_answered(front: Door) -> None:
    front.start()
    front.ask()
    front.ask()

    front.generations.drain()

    assert [str(each) for each in front.answers] == ["handfast is stopping"] * 2


def test_a_generation_whose_template_is_dead_when_it_is_replaced_is_forgotten(
    front: Door,
) -> None:
    front.start()
    current = front.current
    front.ask()
    front.until(lambda: front.journal.count("loaded") == 2)
    current.template.failures = 5  # it is not to be forked again soon
    if current.template.pid:  # else it was replaced already, in order
        os.kill(current.template.pid, signal.SIGKILL)
    front.until(lambda: current.template.pid == 0)

    front.until(lambda: front.answers)

    assert front.answers == [None]
    front.until(lambda: front.settled)
    assert current.plan == -1
