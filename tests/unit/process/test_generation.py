from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from msgspec.structs import replace

from conftest import Certificates
from handfast.process import family as families
from handfast.process.child import Child, Kind
from handfast.process.columns import Columns
from handfast.process.generation import Generation, Phase
from handfast.process.messages import Died, Drain, End, Spawn, Spawned, receive_in_child
from handfast.transport.census import Column
from unit.process.household import Household, config_of, household, orders, template_of


class Scene(Household):
    """One generation, whose template the test plays: `theirs` is its end."""

    def __init__(self, certificates: Certificates, nworkers: int = 2, columns: int = 4) -> None:
        super().__init__(columns)
        config = replace(config_of(certificates), nworkers=nworkers)
        self.generation = Generation(1, config, (), self.family, self.columns, self.loop, self.log)
        self.theirs = template_of(self, self.generation)
        self.ends = ExitStack()
        self.ends.enter_context(self.theirs)

    def hear(self) -> object:
        """Take one order, and keep what comes along."""
        message, descriptors = receive_in_child(self.theirs)
        for each in descriptors:
            self.ends.enter_context(socket.socket(fileno=each))
        return message

    def nothing_to_hear(self) -> bool:
        self.theirs.setblocking(False)
        try:
            self.theirs.recv(100)
        except BlockingIOError:
            return True
        finally:
            self.theirs.settimeout(30)
        return False

    def close(self) -> None:
        self.generation.close_plan()
        super().close()
        self.ends.close()


@pytest.fixture
def scene(certificates: Certificates) -> Iterator[Scene]:
    made = Scene(certificates)
    yield made
    made.close()


def test_every_acceptor_is_asked_for_with_a_column_and_a_control_socket_of_its_own(
    scene: Scene,
) -> None:
    scene.generation.serve()

    orders = [scene.hear(), scene.hear()]

    assert [each.number for each in orders if isinstance(each, Spawn)] == [1, 2]
    assert len({each.column for each in orders if isinstance(each, Spawn)}) == 2
    assert [each.column for each in scene.generation.acceptors] == [
        each.column for each in orders if isinstance(each, Spawn)
    ]
    assert all(each.control is not None for each in scene.generation.acceptors)


def test_an_acceptor_is_not_asked_for_twice(scene: Scene) -> None:
    scene.generation.serve()
    scene.hear()
    scene.hear()

    scene.generation.serve()

    assert scene.nothing_to_hear()


def test_nothing_is_asked_of_a_template_that_has_not_loaded(scene: Scene) -> None:
    scene.generation.template.ready = False

    scene.generation.serve()

    assert scene.nothing_to_hear()
    assert scene.generation.phase is Phase.SERVING


def test_a_generation_is_ready_when_all_its_acceptors_are(scene: Scene) -> None:
    first, second = scene.generation.acceptors

    first.ready = True
    assert not scene.generation.ready
    second.ready = True
    assert scene.generation.ready


def test_an_acceptor_waits_until_there_is_a_column(certificates: Certificates) -> None:
    scene = Scene(certificates, nworkers=1, columns=1)
    other = Child(Kind.ACCEPTOR, 9)
    other.column = scene.columns.take()
    scene.generation.serve()
    assert scene.nothing_to_hear()

    scene.columns.give_back(other)
    scene.until(lambda: scene.generation.acceptors[0].column >= 0)

    assert scene.hear() == Spawn(1, 0)
    scene.close()


def test_a_birth_and_a_death_are_told_and_the_acceptor_is_asked_for_again(scene: Scene) -> None:
    scene.generation.serve()
    scene.hear()
    scene.hear()
    scene.generation.spawned(Spawned(1, 4711))
    acceptor = scene.generation.acceptors[0]
    column = acceptor.column
    Column(scene.census, column).begin_handshake()

    assert scene.generation.died(Died(1, 4711, -signal.SIGKILL)) is acceptor

    (dead,) = scene.events("worker", worker_state="dead")
    assert (dead["worker_id"], dead["worker_pid"]) == ("acceptor-1", "4711")
    assert dead["error_msg"] == "killed by signal 9 (Killed)"
    assert scene.census.handshakes() == 0
    scene.until(lambda: acceptor.control is not None)
    assert isinstance(scene.hear(), Spawn)
    assert acceptor.restarts == 1


def test_an_acceptor_that_cannot_be_forked_is_asked_for_ever_more_slowly(scene: Scene) -> None:
    acceptor = scene.generation.acceptors[0]
    scene.generation.phase = Phase.SERVING

    for _ in range(3):
        scene.generation.died(Died(1, 0, 1))

    assert acceptor.failures == 3


@pytest.mark.parametrize("number", [-1, 0, 3, 1 << 40])
def test_an_acceptor_that_does_not_exist_is_ignored(scene: Scene, number: int) -> None:
    scene.generation.spawned(Spawned(number, 4711))

    assert scene.generation.died(Died(number, 4711, 1)) is None
    assert scene.events("worker") == []


def test_a_death_of_another_process_is_ignored(scene: Scene) -> None:
    scene.generation.spawned(Spawned(1, 4711))

    assert scene.generation.died(Died(1, 4712, 1)) is None
    assert scene.generation.acceptors[0].pid == 4711


def test_a_templates_death_is_that_of_its_acceptors(scene: Scene) -> None:
    scene.generation.serve()
    scene.generation.spawned(Spawned(1, 4711))
    scene.generation.template.pid = 4710

    lost = scene.generation.template_died(-signal.SIGSEGV)

    assert lost == list(scene.generation.acceptors)  # the second was on its way
    assert all(each.column == -1 for each in lost)
    assert [each["worker_id"] for each in scene.events("worker", worker_state="dead")] == [
        "acceptor-1", "acceptor-2", "template",
    ]  # fmt: skip
    assert scene.generation.template.restarts == 1


def test_the_end_of_a_template_that_was_told_to_is_no_error(scene: Scene) -> None:
    scene.generation.serve()
    scene.generation.drain()
    scene.generation.died(Died(1, 0, 0))
    scene.generation.died(Died(2, 0, 0))

    assert scene.generation.template_died(0) == []

    assert not any("error_msg" in each for each in scene.events("worker"))
    assert scene.generation.template.restarts == 0


def test_draining_is_told_to_all_and_nothing_is_forked_any_more(scene: Scene) -> None:
    scene.generation.serve()
    spawns = [scene.hear(), scene.hear()]
    assert all(isinstance(each, Spawn) for each in spawns)

    scene.generation.drain()
    scene.generation.end("too late")
    scene.generation.serve()

    assert scene.hear() == Drain()
    assert scene.nothing_to_hear()
    assert scene.generation.phase is Phase.DRAINING


def test_acceptors_are_told_to_end_their_handshakes(scene: Scene) -> None:
    acceptor = scene.generation.acceptors[0]
    with scene.family.expect(acceptor) as theirs:
        theirs.settimeout(30)

        scene.generation.drain()
        scene.generation.end("handfast is stopping")

        assert receive_in_child(theirs)[0] == Drain()
        assert receive_in_child(theirs)[0] == End("handfast is stopping")


def test_the_plan_is_a_copy_that_is_replaced_and_closed(scene: Scene) -> None:
    first, second = os.memfd_create("one"), os.memfd_create("two")

    scene.generation.loaded(first, ())
    os.close(first)
    assert os.fstat(scene.generation.plan)
    scene.generation.loaded(second, ())
    assert os.path.sameopenfile(scene.generation.plan, second)

    scene.generation.close_plan()
    assert scene.generation.plan == -1
    scene.generation.close_plan()
    os.close(second)


def test_files_that_are_lost_under_a_generation_that_serves_are_told(scene: Scene) -> None:
    scene.generation.refused_again(("a.pem: cannot be read", "b.pem: cannot be read"))

    assert [each["error_desc"] for each in scene.events("system_error")] == [
        "a.pem: cannot be read", "b.pem: cannot be read",
    ]  # fmt: skip


def test_a_template_that_cannot_be_forked_is_tried_again(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fork(*_: object) -> int:
        raise BlockingIOError

    with household() as home:
        generation = Generation(
            1, config_of(certificates), (), home.family, home.columns, home.loop, home.log
        )
        with monkeypatch.context() as full:
            full.setattr(families, "fork", no_fork)
            generation.start(lambda control: (lambda: len(list(orders(control))), set()))
            assert generation.template.pid == 0

        home.until(lambda: generation.template.pid)
        generation.kill()
        home.until(lambda: home.lost)

    assert home.lost == [(generation.template, -signal.SIGKILL)]


def test_a_generation_knows_its_processes(scene: Scene) -> None:
    generation = scene.generation

    assert generation.template in generation
    assert generation.acceptors[1] in generation
    assert Child(Kind.ACCEPTOR, 1) not in generation


def test_columns_are_given_once_and_cleared_when_they_come_back() -> None:
    with household() as home:
        columns = Columns(home.census, range(2, home.census.columns))
        child = Child(Kind.RELAY, 1)
        child.column = columns.take()
        assert {child.column, columns.take(), columns.take()} == {0, 1, -1}
        column, number = Column(home.census, child.column), child.column
        column.hold(home.census.place(0, "192.0.2.1"))
        column.begin_handshake()

        columns.give_back(child)
        columns.give_back(child)  # it has none any more

        assert (home.census.connections(), home.census.handshakes()) == (0, 0)
        assert (columns.take(), columns.take()) == (number, -1)
