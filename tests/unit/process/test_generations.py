from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from conftest import Certificates
from handfast.config import Config, Isolation, TcpAddress
from handfast.errors import ConfigError, HandfastError, Problem
from handfast.process import generations
from handfast.process.messages import Configured, Ready, Refused, send
from harness.processes import Watched
from unit.process.household import (
    LOCAL,
    Door,
    config_of,
    door,
    is_running,
    listener_of,
    obedient_acceptor,
    orders,
    pids_of,
)


@pytest.fixture
def front(certificates: Certificates) -> Iterator[Door]:
    with door(certificates) as made:
        yield made


def configured(front: Door) -> list[int]:
    """The plans that relays have confirmed, in order."""
    return [each.generation for _, each in front.told if isinstance(each, Configured)]


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path would be one more object


class Gate:
    """Holds acceptors back before they are ready, until it is opened."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def accept(self, number: int, column: int, control: socket.socket, engines: Any) -> int:
        os.read(self._reading, 1)
        return obedient_acceptor(number, column, control, engines)

    def open(self) -> None:
        os.write(self._writing, bytes(100))

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


@pytest.fixture
def gate(front: Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate that acceptors can see: templates keep its end for them."""
    made = Gate()
    template = front.template

    def keeping(generation: Any) -> Any:
        role = template(generation)

        def kept(control: socket.socket) -> tuple[Callable[[], int], set[int]]:
            main, keep = role(control)
            keep.add(made._reading)
            return main, keep

        return kept

    monkeypatch.setattr(front, "template", keeping)
    yield made
    made.open()
    made.close()


def test_the_first_generation_serves_when_files_relays_and_acceptors_are_ready(
    front: Door,
) -> None:
    front.start()

    assert front.journal[:2] == ["template: Loaded", "loaded"]
    assert "serving" in front.journal
    assert configured(front) == [1, 1]
    assert front.current.ready
    assert front.relays.ready
    assert [each.listener for each in front.current.certificates] == ["front"]


def test_a_reload_has_its_steps_in_order(front: Door) -> None:
    front.start()
    old = pids_of(front.current)
    front.journal.clear()

    assert front.reload() is None

    steps = [each for each in front.journal if not each.endswith(("Spawned", "Died"))]
    assert steps[:2] == ["template: Loaded", "loaded"]
    assert {*steps[2:6]} == {
        "relay 1: Configured", "relay 1: Ready", "relay 2: Configured", "relay 2: Ready",
    }  # fmt: skip
    assert {*steps[6:8]} == {"acceptor 1: Ready", "acceptor 2: Ready"}
    assert steps[8] == "serving"
    assert front.current.number == 2
    assert not any(is_running(pid) for pid in old)
    assert [each["outcome"] for each in front.events("reload")] == ["ok"]
    assert not any("error_msg" in each for each in front.events("worker"))


def test_old_acceptors_stay_until_the_new_ones_accept(front: Door, gate: Gate) -> None:
    front.start()
    old = pids_of(front.current)
    front.accept = gate.accept
    front.ask()
    front.until(lambda: configured(front).count(2) == 2)
    following = front.generations._next
    assert following is not None
    front.until(lambda: all(each.pid for each in following.acceptors))

    assert all(is_running(pid) for pid in old)
    assert front.current.number == 1
    assert front.answers == []
    gate.open()
    front.until(lambda: front.answers == [None] and front.settled)
    assert front.current is following


def test_a_file_that_is_missing_refuses_the_reload_and_leaves_everything(
    front: Door, certificates: Certificates
) -> None:
    front.start()
    before, bound = pids_of(front.current), front.current.bound
    front.journal.clear()
    new = listener_of(certificates, "new")
    broken = listener_of(certificates, "broken", chain=Path("/no/such/chain.pem"))
    front.config = config_of(certificates, new, broken)

    error = front.reload()

    assert isinstance(error, ConfigError)
    assert "/no/such/chain.pem: cannot be read" in str(error)
    assert pids_of(front.current) == before
    assert front.current.bound == bound
    assert all(is_running(pid) for pid in before)
    assert not {"loaded", "serving"} & {*front.journal}
    assert configured(front) == [1, 1]
    assert front.generations.reloads.failed == 1
    told = front.events("reload", outcome="refused")
    assert "/no/such/chain.pem" in told[0]["error_msg"]


def test_what_the_parser_refuses_is_told_before_anything_is_forked(front: Door) -> None:
    front.start()
    front.config = ConfigError(Problem("unknown key", "listners", 3))
    before = len(front.events("worker"))

    error = front.reload()

    assert str(error) == "line 3: listners: unknown key"
    assert len(front.events("worker")) == before
    assert front.current.number == 1


def test_a_refused_reload_leaves_no_listening_socket_behind(
    front: Door, certificates: Certificates
) -> None:
    front.start()
    with socket.create_server((LOCAL, 0)) as other:
        taken = TcpAddress(host=LOCAL, port=other.getsockname()[1])
        front.config = config_of(
            certificates,
            listener_of(certificates, "new"),
            listener_of(certificates, "taken", taken),
        )
        before = open_descriptors()

        error = front.reload()

        assert f"cannot listen on {taken}" in str(error)
        assert open_descriptors() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"nworkers": 3},
        {"control": "/run/other"},
        {"pidfile": "/run/other.pid"},
        {"metrics": TcpAddress(host=LOCAL, port=1)},
        {"logfile": "syslog"},
        {"isolation": Isolation(user="daemon")},
        {"isolation": Isolation(group="daemon")},
        {"isolation": Isolation(chroot="/srv")},
        {"isolation": Isolation(mode="required")},
    ],
    ids="-".join,
)
def test_what_processes_get_when_they_start_needs_an_upgrade(
    front: Door, changes: dict[str, Any]
) -> None:
    front.start()
    assert isinstance(front.config, Config)
    assert not front.generations.needs_upgrade()

    front.config = replace(front.config, **changes)

    assert front.generations.needs_upgrade()


def test_another_version_on_the_disk_needs_an_upgrade(
    front: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.start()

    monkeypatch.setattr(generations, "installed_version", lambda: "999")

    assert front.generations.needs_upgrade()


def test_a_configuration_that_is_wrong_needs_none(front: Door) -> None:
    front.start()

    front.config = ConfigError("it is wrong")

    assert not front.generations.needs_upgrade()


def test_a_template_that_dies_while_it_loads_refuses_the_reload(front: Door) -> None:
    front.start()
    before = pids_of(front.current)
    front.load = lambda _: 3

    error = front.reload()

    assert str(error) == "the process that reads the files died"
    assert pids_of(front.current) == before
    assert front.events("worker", worker_state="dead")[0]["error_msg"] == "ended with status 3"
    front.load = None
    assert front.reload() is None


def hang(control: socket.socket) -> int:
    for _ in orders(control):
        pass
    return 0


def test_a_template_that_takes_too_long_is_ended(
    front: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.start()
    monkeypatch.setattr(generations, "LOAD_SECONDS", 0.2)
    front.load = hang

    assert str(front.reload()) == "the files could not be read within 0.2 s"
    assert front.current.number == 1


def test_acceptors_that_do_not_get_ready_refuse_the_reload_and_the_relays_go_back(
    front: Door, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.start()
    before = pids_of(front.current)
    monkeypatch.setattr(generations, "START_SECONDS", 0.3)
    front.accept = gate.accept
    front.ask()
    front.until(lambda: front.answers)
    gate.open()
    front.until(lambda: front.settled)

    assert str(front.answers[0]) == "not ready within 0.3 s: acceptor 1, acceptor 2"
    front.until(lambda: configured(front) == [1, 1, 2, 2, 1, 1])
    assert pids_of(front.current) == before
    front.accept = obedient_acceptor
    monkeypatch.setattr(generations, "START_SECONDS", 30.0)
    assert front.reload() is None
    assert front.current.number == 3


def test_files_that_get_lost_before_the_change_over_refuse_the_reload(
    front: Door, gate: Gate
) -> None:
    front.start()
    front.accept = gate.accept
    front.ask()
    front.until(lambda: configured(front).count(2) == 2)
    following = front.generations._next
    assert following is not None
    following._role = lambda control: (
        lambda: send(control, Refused(("chain.pem: cannot be read",))) or 1,
        set(),
    )
    os.kill(following.template.pid, signal.SIGKILL)
    front.until(lambda: front.answers and front.settled)

    assert str(front.answers[0]) == "chain.pem: cannot be read"
    front.until(lambda: configured(front)[-2:] == [1, 1])


def test_a_reload_that_is_asked_for_during_another_makes_one_more_behind_it(front: Door) -> None:
    front.start()

    front.ask()
    front.ask()
    front.ask()
    front.until(lambda: len(front.answers) == 3 and front.settled)

    assert front.answers == [None, None, None]
    assert front.current.number == 3
    assert front.generations.reloads.ok == 2


def test_a_reload_behind_a_refused_one_is_made_all_the_same(
    front: Door, certificates: Certificates
) -> None:
    front.start()
    good = front.config
    missing = Path("/no/such/chain.pem")
    front.config = config_of(certificates, listener_of(certificates, chain=missing))
    front.ask()
    front.config = good
    front.ask()
    front.until(lambda: len(front.answers) == 2 and front.settled)

    assert isinstance(front.answers[0], ConfigError)
    assert front.answers[1] is None


def test_relays_that_do_not_answer_are_named_and_not_waited_for(
    front: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.start()
    monkeypatch.setattr(generations, "CONFIGURE_SECONDS", 0.2)
    deaf = front.relays.children[0]
    os.kill(deaf.pid, signal.SIGSTOP)

    assert front.reload() is None

    told = [each["error_msg"] for each in front.events("system_error")]
    assert told == ["relay 1 does not answer; its rules may be old"]


def test_a_template_that_dies_is_forked_again_with_its_acceptors(front: Door) -> None:
    front.start()
    before = pids_of(front.current)

    os.kill(before[0], signal.SIGKILL)
    front.until(lambda: len(front.lost) == 1 and front.current.ready and front.settled)

    after = pids_of(front.current)
    assert not {*before} & {*after}
    assert front.current.number == 1
    assert front.current.template.restarts == 1
    assert configured(front) == [1, 1, 1, 1]


def test_an_acceptor_that_dies_is_forked_again_alone(front: Door) -> None:
    front.start()
    template, first, second = pids_of(front.current)
    acceptor = front.current.acceptors[0]

    os.kill(first, signal.SIGKILL)
    front.until(lambda: acceptor.pid not in (0, first) and acceptor.ready)

    assert pids_of(front.current)[0::2] == [template, second]
    assert acceptor.restarts == 1


def test_a_template_of_the_old_generation_does_not_take_the_relays_back(
    front: Door, gate: Gate
) -> None:
    front.start()
    old = front.current
    front.accept = gate.accept
    front.ask()
    front.until(lambda: configured(front).count(2) == 2)

    os.kill(old.template.pid, signal.SIGKILL)
    front.until(lambda: old.ready and old.template.restarts)
    gate.open()
    front.until(lambda: front.answers and front.settled)

    assert front.answers == [None]
    assert configured(front)[-1] == 2
    assert front.current.number == 2


def test_a_start_that_is_refused_is_told_to_the_supervisor(
    front: Door, certificates: Certificates
) -> None:
    missing = Path("/no/such/chain.pem")
    front.generations.begin(config_of(certificates, listener_of(certificates, chain=missing)))

    front.until(lambda: front.error)

    assert "/no/such/chain.pem" in str(front.error)
    assert front.generations.current is None


def test_a_socket_that_is_taken_is_told_at_once_at_the_start(
    front: Door, certificates: Certificates
) -> None:
    with socket.create_server((LOCAL, 0)) as other:
        taken = TcpAddress(host=LOCAL, port=other.getsockname()[1])
        with pytest.raises(HandfastError, match="cannot listen on"):
            front.generations.begin(config_of(certificates, listener_of(certificates, "a", taken)))


def test_draining_ends_every_process_of_every_generation(front: Door, gate: Gate) -> None:
    front.start()
    pids = pids_of(front.current)
    front.load = hang
    front.ask()
    following = front.generations._next
    assert following is not None
    watched = Watched(*pids, following.template.pid)

    front.generations.drain()
    front.until(lambda: not list(front.generations))

    watched.wait()
    assert front.generations.current is None


def test_a_third_generation_ends_the_handshakes_of_the_first(
    front: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(number: int, column: int, control: socket.socket, engines: Any) -> int:
        obedient_acceptor(number, column, control, engines)
        control.recv(100)  # until it is told to end
        return 0

    front.accept = busy
    front.start()
    old = front.current
    front.accept = obedient_acceptor
    front.ask()
    front.until(lambda: front.answers)
    assert old in list(front.generations)

    front.ask()
    front.until(lambda: front.settled)

    assert old not in list(front.generations)
    assert front.current.number == 3


def test_many_reloads_leave_nothing_behind(front: Door) -> None:
    front.start()
    front.reload()
    before = open_descriptors()

    for _ in range(10):
        assert front.reload() is None

    assert len(open_descriptors()) == len(before)
    assert front.columns.take() >= 0
    assert len([each for each in front.family.children if each.pid]) == 3


def test_a_child_of_no_generation_is_not_listened_to(front: Door) -> None:
    front.start()
    stranger = type(front.current.template)(front.current.template.kind, 0)

    assert front.generations.heard(stranger, Ready(), []) == []
    assert front.generations.died(stranger, 0) == []
