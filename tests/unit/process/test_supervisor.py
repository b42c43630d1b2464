from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from handfast import config
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process import supervisor as supervisors
from handfast.process import template as templates
from handfast.process.child import Child, Kind
from handfast.process.messages import Died, control_pair, receive_from_child
from handfast.process.supervisor import Plan, Supervisor
from handfast.process.template import Template


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    parsed = config.from_options("127.0.0.1:0", "tcp://127.0.0.1:1", "cert", "key", cores=1)
    log = Log.open(tmp_path / "log", Level.DEBUG, process_type="master")
    made = Supervisor(Plan(parsed, "test", tmp_path / "control", lambda _: None), log)
    yield made
    made._loop.close()
    os.close(made._signals)
    for ends in made._channels:
        for end in ends:
            end.close()
    log.close()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def no_fork(*_: object) -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_nonsense_from_a_child_that_is_dead_already_harms_nothing(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    child = Child(Kind.ACCEPTOR, 1)
    child.pid = dead.pid
    ours, theirs = control_pair()
    child.control = ours
    supervisor._loop.add_reader(ours.fileno(), lambda: None)
    theirs.send(b"nonsense")
    theirs.close()

    supervisor._drop_control(child, drain=True)

    assert ours.fileno() == -1
    assert "malformed message" in (tmp_path / "log").read_text()


def test_a_fork_that_fails_is_told_and_tried_again(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "fork", no_fork)
    child = Child(Kind.RELAY, 1)

    supervisor._fork(child)

    assert "cannot fork relay 1" in (tmp_path / "log").read_text()
    assert child.control is None
    assert len(supervisor._loop._timers) == 1


def test_an_acceptor_that_cannot_be_forked_is_asked_for_ever_more_slowly(
    supervisor: Supervisor,
) -> None:
    acceptor = supervisor._acceptors[0]

    for _ in range(3):
        supervisor._take(supervisor._template, Died(1, 0, 1))

    assert acceptor.failures == 3


def test_an_acceptor_that_cannot_be_forked_counts_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "fork", no_fork)
    supervisor_end, template_end = control_pair()
    acceptor_end, theirs = control_pair()
    template = Template(template_end, set(), (), lambda *_: 0)

    template._spawn(2, theirs, select.poll())

    assert receive_from_child(supervisor_end) == Died(2, 0, 1)
    assert acceptor_end.recv(1) == b""
    for each in (supervisor_end, template_end, acceptor_end):
        each.close()
