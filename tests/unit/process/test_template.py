from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from conftest import Certificates
from handfast.config import Config, Timeouts
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process import template as templates
from handfast.process.fork import fork
from handfast.process.messages import (
    Died,
    Drain,
    FromChild,
    Loaded,
    Refused,
    Reopen,
    Spawn,
    Spawned,
    control_pair,
    receive_from_child,
    receive_in_child,
    send,
)
from handfast.process.sealed import unseal
from handfast.process.template import Engines, Template, Work
from handfast.relay.plan import Plan, decode
from harness.instance import wait_for
from harness.pki import DAY, NOW, issue
from unit.process.household import LOCAL, PATIENCE, config_of, is_running, listener_of

PLAN = Plan(3, {}, Timeouts(), 1, "INFO", {})
Accept = Callable[[int, int, socket.socket, Engines], int]


def say_what_it_got(number: int, column: int, control: socket.socket, engines: Engines) -> int:
    """An acceptor that tells what it was given, and ends when it is told to."""
    kinds = ",".join(type(each).__name__ for each in engines)
    control.send(f"{number} {column} {kinds}".encode())
    return int(control.recv(100) or b"0")


class Running:
    """A template in a process of its own, and the supervisor's end of its control pair."""

    def __init__(self, config: Config, accept: Accept, log: Path) -> None:
        self.stack = ExitStack()
        self.log = Log.open(log, Level.INFO, process_type="master")
        self.listening = self.stack.enter_context(socket.create_server((LOCAL, 0)))
        self.steps, steps = os.pipe()
        self.control, control = control_pair()
        self.stack.enter_context(self.control)

        def confine() -> None:
            os.write(steps, b"confined ")

        def plan(_: object) -> Plan:
            os.write(steps, b"planned ")
            return PLAN

        keep = {control.fileno(), self.listening.fileno(), self.log.fileno(), steps}
        work = Work(config, plan, confine, accept)
        with control:
            self.pid = fork(
                "template",
                lambda: Template(control, {self.log.fileno()}, (self.listening,), work).run(
                    self.log.heir(Level.INFO, process_type="master")
                ),
                keep,
            )
        os.close(steps)
        self.ended = False

    def hear(self) -> tuple[FromChild, list[int]]:
        assert select.select([self.control], [], [], PATIENCE)[0]
        received = receive_from_child(self.control)
        assert received is not None
        return received

    def loaded(self) -> Loaded:
        message, (plan,) = self.hear()
        os.close(plan)
        assert isinstance(message, Loaded)
        return message

    def spawn(self, number: int, column: int = 0) -> tuple[int, socket.socket]:
        """Have an acceptor forked; give its PID and our end of its pair."""
        ours, theirs = control_pair()
        ours.settimeout(PATIENCE)
        self.stack.enter_context(ours)
        with theirs:
            send(self.control, Spawn(number, column), theirs.fileno())
        message, _ = self.hear()
        assert isinstance(message, Spawned)
        assert message.number == number
        return message.pid, ours

    def end(self) -> int:
        self.ended = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            self.end()
        self.stack.close()
        os.close(self.steps)
        self.log.close()


def held_by(pid: int) -> set[str]:
    """What the descriptors of a process stand for; some may be closed while one looks."""
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(each.readlink()))
    return found


@pytest.fixture
def running(certificates: Certificates, tmp_path: Path) -> Iterator[Running]:
    made = Running(config_of(certificates), say_what_it_got, tmp_path / "log")
    yield made
    made.close()


def test_it_loads_then_gives_up_its_rights_then_tells(running: Running) -> None:
    message, (plan,) = running.hear()

    assert os.read(running.steps, 100) == b"planned confined "
    assert isinstance(message, Loaded)
    assert [each.listener for each in message.certificates] == ["front"]
    assert decode(unseal(plan)) == PLAN
    os.close(plan)


def test_certificates_are_in_the_log(running: Running, tmp_path: Path) -> None:
    running.loaded()

    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition("cert_role=")[2].split()[0] for line in lines] == ["leaf", "server_ca"]


def test_an_acceptor_gets_its_number_its_column_and_the_engines(running: Running) -> None:
    running.loaded()

    _, control = running.spawn(2, 5)

    assert control.recv(100) == b"2 5 OpenSSLEngine"


def test_the_end_of_an_acceptor_is_told_with_its_status(running: Running) -> None:
    running.loaded()
    pid, control = running.spawn(1)
    control.recv(100)

    control.send(b"7")

    assert running.hear() == (Died(1, pid, 7), [])


def test_a_killed_acceptor_is_told_so(running: Running) -> None:
    running.loaded()
    pid, control = running.spawn(1)
    control.recv(100)

    os.kill(pid, signal.SIGKILL)

    assert running.hear() == (Died(1, pid, -signal.SIGKILL), [])


def test_it_stays_until_its_last_acceptor_has_ended_but_holds_no_socket(
    running: Running,
) -> None:
    running.loaded()
    _, control = running.spawn(1)
    control.recv(100)
    inode = os.fstat(running.listening.fileno()).st_ino

    def holds() -> bool:
        return f"socket:[{inode}]" in held_by(running.pid)

    assert holds()
    send(running.control, Drain())
    wait_for(lambda: not holds(), "its sockets are closed")
    assert is_running(running.pid)
    control.send(b"0")

    assert isinstance(running.hear()[0], Died)
    assert running.end() == 0


def test_it_ends_when_the_supervisor_is_gone(running: Running) -> None:
    running.loaded()

    running.control.close()

    assert running.end() == 0


def test_acceptors_die_with_it(running: Running) -> None:
    running.loaded()
    pid, control = running.spawn(1)
    control.recv(100)

    os.kill(running.pid, signal.SIGKILL)

    assert running.end() == -signal.SIGKILL
    wait_for(lambda: not is_running(pid), "the acceptor has ended")


def test_a_log_that_was_opened_anew_is_used_from_then_on(running: Running, tmp_path: Path) -> None:
    running.loaded()
    with (tmp_path / "new").open("wb") as new:
        send(running.control, Reopen(), new.fileno())

    wait_for(lambda: str(tmp_path / "new") in held_by(running.pid), "the new log is open")


def test_files_that_cannot_be_loaded_are_told_all_and_it_ends(
    certificates: Certificates, tmp_path: Path
) -> None:
    missing = [Path(f"/no/such/{number}.pem") for number in range(150)]
    listeners = [listener_of(certificates, str(each), chain=each) for each in missing]
    running = Running(config_of(certificates, *listeners), say_what_it_got, tmp_path / "log")

    message, _ = running.hear()

    assert isinstance(message, Refused)
    assert len(message.problems) == 100
    assert message.problems[99].startswith("/no/such/99.pem: cannot be read")
    assert running.end() == 1
    assert os.read(running.steps, 100) == b""
    running.close()


def test_of_very_many_certificates_those_that_end_first_are_told(
    certificates: Certificates, tmp_path: Path
) -> None:
    soon = issue("soon.example", not_after=NOW + DAY)
    chain, key = soon.write(tmp_path, "soon")
    many = [listener_of(certificates, str(number)) for number in range(250)]
    certificate = replace(many[0].certificates[0], chain=str(chain), key=str(key))
    many[-1] = replace(many[-1], certificates=(certificate,))
    running = Running(config_of(certificates, *many), say_what_it_got, tmp_path / "log")

    told = running.loaded().certificates

    assert len(told) == 200
    assert (told[0].listener, told[0].subject) == ("249", "CN=soon.example")
    running.close()


def test_an_acceptor_that_cannot_be_forked_counts_as_dead(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fork(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(templates, "fork", no_fork)
    supervisor_end, template_end = control_pair()
    acceptor_end, theirs = control_pair()
    work = Work(config_of(certificates), lambda _: PLAN, lambda: None, say_what_it_got)
    template = Template(template_end, set(), (), work)

    template._spawn(Spawn(2, 1), theirs, select.poll())

    assert receive_from_child(supervisor_end) == (Died(2, 0, 1), [])
    with pytest.raises(EOFError):
        receive_in_child(acceptor_end)
    for each in (supervisor_end, template_end, acceptor_end):
        each.close()


def test_what_is_wrong_is_told_as_far_as_a_message_has_room(
    certificates: Certificates, tmp_path: Path
) -> None:
    missing = [Path(f"/no/such/{number}" + "/x" * 2000) for number in range(100)]
    listeners = [listener_of(certificates, str(each)[:20], chain=each) for each in missing]
    running = Running(config_of(certificates, *listeners), say_what_it_got, tmp_path / "log")

    message, _ = running.hear()

    assert isinstance(message, Refused)
    assert 10 < len(message.problems) < 100
    assert message.problems[0].startswith("/no/such/0/x")
    running.close()
