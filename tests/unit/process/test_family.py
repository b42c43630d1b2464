from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from handfast.process import family as families
from handfast.process.child import Child, Kind
from handfast.process.family import Role, cause, kill
from handfast.process.messages import Configured, Loaded, Ready, control_pair, send
from unit.process.household import Household, household, is_running, orders


@pytest.fixture
def home() -> Iterator[Household]:
    with household() as made:
        yield made


@pytest.fixture
def child() -> Child:
    return Child(Kind.RELAY, 1)


def life(main: Callable[[socket.socket], int]) -> Role:
    return lambda control: (lambda: main(control), set())


def wait_for_the_end(control: socket.socket) -> int:
    for _ in orders(control):
        pass
    return 0


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path would be one more object


def test_a_child_is_born_heard_and_buried(home: Household, child: Child) -> None:
    def main(control: socket.socket) -> int:
        send(control, Ready())
        control.recv(1)
        return 7

    assert home.family.fork(child, life(main))
    pid = child.pid
    home.until(lambda: home.told)
    assert child.control is not None
    child.control.send(b"x")
    home.until(lambda: home.lost)

    assert home.told == [(child, Ready())]
    assert home.lost == [(child, 7)]
    assert (child.pid, child.ready) == (0, False)
    born, died = home.events("worker", worker_id="relay-1", worker_pid=str(pid))
    assert (born["worker_state"], died["worker_state"]) == ("spawned", "dead")
    assert died["error_msg"] == "ended with status 7"
    assert home.family.children == set()


def test_last_words_are_heard_before_the_burial(home: Household, child: Child) -> None:
    def main(control: socket.socket) -> int:
        for number in range(20):
            send(control, Configured(number))
        return 0

    home.family.fork(child, life(main))
    home.until(lambda: home.lost)

    assert [message for _, message in home.told] == [Configured(number) for number in range(20)]


def test_a_child_that_comes_and_goes_leaves_no_descriptor(home: Household, child: Child) -> None:
    before = open_descriptors()

    home.family.fork(child, life(lambda _: 0))
    home.until(lambda: home.lost)

    assert open_descriptors() == before


def test_descriptors_of_a_message_are_there_for_as_long_as_it_is_heard(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    monkeypatch.setattr(
        home, "heard", lambda _child, _message, found: seen.append(os.read(found[0], 100))
    )

    def main(control: socket.socket) -> int:
        reading, writing = os.pipe()
        os.write(writing, b"from the child")
        send(control, Loaded(()), reading)
        return wait_for_the_end(control)

    before = open_descriptors() + 2  # its pidfd, its control socket
    home.family.fork(Child(Kind.TEMPLATE, 0), life(main))
    home.until(lambda: seen)

    assert seen == [b"from the child"]
    assert open_descriptors() == before


def test_a_fork_that_fails_is_told_and_leaves_nothing(
    home: Household, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fork(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(families, "fork", no_fork)
    before = open_descriptors()

    assert not home.family.fork(child, life(wait_for_the_end))

    (told,) = home.events("system_error")
    assert told["error_msg"] == "cannot fork relay 1"
    assert told["error_desc"] == os.strerror(errno.EAGAIN)
    assert (child.pid, child.control) == (0, None)
    assert child.started > 0
    assert open_descriptors() == before


def test_a_child_that_talks_nonsense_is_killed(home: Household, child: Child) -> None:
    def main(control: socket.socket) -> int:
        control.send(b"nonsense")
        signal.pause()
        return 0

    home.family.fork(child, life(main))
    home.until(lambda: home.lost)

    assert home.lost == [(child, -signal.SIGKILL)]
    assert home.told == []
    (told,) = home.events("system_error")
    assert told["error_msg"].startswith("relay 1: malformed message")


def test_nonsense_of_a_child_that_is_dead_already_harms_nothing(
    home: Household, child: Child
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    theirs = home.family.expect(child)
    home.family.born(child, dead.pid)
    theirs.send(b"nonsense")
    theirs.close()

    home.until(lambda: child.control is None)
    home.family.dead(child, 0, expected=True)

    assert "malformed message" in home.text()
    assert home.told == []


def test_a_child_of_another_process_is_heard_too(home: Household, child: Child) -> None:
    theirs = home.family.expect(child)

    send(theirs, Ready())
    home.until(lambda: home.told)

    assert home.told == [(child, Ready())]
    assert home.family.children == set()
    theirs.close()
    home.until(lambda: child.control is None)


def test_a_child_that_nobody_here_forked_is_ended_by_who_did(home: Household, child: Child) -> None:
    ended: list[bool] = []
    theirs = home.family.expect(child, lambda: ended.append(True))

    theirs.send(b"nonsense")
    home.until(lambda: child.control is None)
    theirs.close()

    assert ended == [True]


def test_a_child_that_closes_its_control_socket_as_it_ends_is_not_killed(
    home: Household, child: Child
) -> None:
    def main(control: socket.socket) -> int:
        control.close()
        signal.sigtimedwait({signal.SIGUSR2}, 0.2)
        return 0

    home.family.fork(child, life(main))
    home.until(lambda: home.lost)

    assert home.lost == [(child, 0)]


def test_a_child_that_closes_its_control_socket_is_killed(home: Household, child: Child) -> None:
    def main(control: socket.socket) -> int:
        control.close()
        signal.pause()
        return 0

    home.family.fork(child, life(main))
    home.until(lambda: home.lost)

    assert home.lost == [(child, -signal.SIGKILL)]


@pytest.mark.parametrize(
    ("status", "expected", "text"),
    [
        (0, True, None),
        (0, False, "ended with status 0"),
        (1, True, "ended with status 1"),
        (-9, False, "killed by signal 9 (Killed)"),
    ],
)
def test_a_death_has_a_cause_unless_it_was_to_be(
    home: Household, child: Child, status: int, expected: bool, text: str | None
) -> None:
    home.family.dead(child, status, expected=expected)

    (told,) = home.events("worker", worker_state="dead")
    assert told.get("error_msg") == text
    assert told["level"] == ("ERROR" if text else "INFO")


def test_a_signal_is_named() -> None:
    assert cause(-signal.SIGSEGV) == "killed by signal 11 (Segmentation fault)"


def test_all_children_can_be_ended_at_once(home: Household) -> None:
    children = [Child(Kind.RELAY, number) for number in range(3)]
    for each in children:
        home.family.fork(each, life(wait_for_the_end))
        home._known.add(each)
    pids = [each.pid for each in children]

    home.family.kill_all()

    assert not any(is_running(pid) for pid in pids)
    assert home.family.children == set()
    assert {each.pidfd for each in children} == {-1}


def test_killing_who_is_dead_harms_nothing(child: Child) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    child.pid = dead.pid
    kill(child)
    child.pid = 0
    kill(child)


def test_a_child_has_no_descriptor_that_was_not_meant_for_it(home: Household, child: Child) -> None:
    ours, theirs = control_pair()
    with ours, theirs:

        def main(control: socket.socket) -> int:
            try:
                os.fstat(theirs.fileno())
            except OSError:
                return 0
            return 1

        home.family.fork(child, life(main))
        home.until(lambda: home.lost)

    assert home.lost == [(child, 0)]


@pytest.mark.parametrize("call", ["control_pair", "pidfd_open"])
def test_a_child_for_which_there_is_no_descriptor_is_not_born(
    home: Household, child: Child, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def no_room(*_: object, **__: object) -> tuple[socket.socket, socket.socket]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    where = os if call == "pidfd_open" else families
    before = open_descriptors()
    with monkeypatch.context() as short:
        short.setattr(where, call, no_room)
        assert not home.family.fork(child, life(wait_for_the_end))

    assert (child.pid, child.pidfd, child.control) == (0, -1, None)
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # there is none that nobody knows


def test_a_child_that_hangs_up_and_lives_on_is_killed(home: Household, child: Child) -> None:
    def main(control: socket.socket) -> int:
        control.close()
        signal.pause()
        return 0

    home.family.fork(child, life(main))
    home.until(lambda: home.lost)

    assert home.lost == [(child, -signal.SIGKILL)]


@pytest.mark.parametrize("last", [b"nonsense", b""], ids=["nonsense", "hanging up"])
def test_a_child_of_another_process_is_killed_by_that(
    home: Household, child: Child, last: bytes
) -> None:
    killed: list[bool] = []
    theirs = home.family.expect(child, lambda: killed.append(True))
    home.family.born(child, os.getpid())  # were it killed by its pid, it would be us

    theirs.send(last) if last else theirs.close()
    home.until(lambda: killed)

    assert killed == [True]
    theirs.close()


def test_only_a_template_can_send_descriptors(home: Household, child: Child) -> None:
    """Closing a socket that lingers blocks, and who receives one has to close it."""

    def main(control: socket.socket) -> int:
        try:
            send(control, Ready(), 0)
        except PermissionError:
            return 42
        return 0

    home.family.fork(child, life(main))
    home.until(lambda: home.lost)

    assert home.lost == [(child, 42)]


def test_what_the_child_of_another_process_said_last_is_heard(
    home: Household, child: Child
) -> None:
    theirs = home.family.expect(child)
    send(theirs, Ready())
    theirs.close()

    home.family.dead(child, 0, expected=True)

    assert home.told == [(child, Ready())]
