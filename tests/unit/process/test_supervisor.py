from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from handfast import config
from handfast.config import Config
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process.child import Child, Kind
from handfast.process.columns import wanted
from handfast.process.commands import Answer, Request
from handfast.process.messages import Configured
from handfast.process.source import Source
from handfast.process.supervisor import Plan, Supervisor


class Client:
    """A client of the control socket that keeps its answer."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.closed = False

    def answer(self, answer: Answer) -> None:
        self.answers.append(answer)

    def close(self) -> None:
        self.closed = True


def parsed() -> Config:
    return config.from_options("127.0.0.1:0", "tcp://127.0.0.1:1", "cert", "key", cores=1)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    log = Log.open(tmp_path / "log", Level.DEBUG, process_type="master")
    plan = Plan(parsed(), Source("test", parsed), tmp_path / "control", lambda _: None)
    made = Supervisor(plan, log)
    yield made
    made.loop.close()
    os.close(made._signals)
    made.relays.close()
    made.sidecars.close()
    assert made.census.shared is not None
    os.close(made.census.shared.descriptor)
    log.close()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("state", ["starting", "draining"])
def test_there_is_no_reload_but_while_it_serves(supervisor: Supervisor, state: str) -> None:
    supervisor.state = state  # type: ignore[assignment]  # one of the three
    client = Client()

    supervisor.orders.handle(Request("reload"), client)  # type: ignore[arg-type]  # as a Pending

    assert [each.error for each in client.answers] == [f"handfast is {state}; it cannot reload now"]
    assert client.closed


def test_a_relay_that_confirms_what_nobody_asked_for_harms_nothing(supervisor: Supervisor) -> None:
    supervisor._heard(Child(Kind.RELAY, 1), Configured(99), [])

    assert supervisor.state == "starting"


def test_there_are_columns_for_all_that_can_be_at_a_time() -> None:
    """Relays and acceptors of two programs, of those a generation that ends and the next one."""
    assert wanted(5) == 30
