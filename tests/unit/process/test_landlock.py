from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import seccompy

from handfast.process import landlock
from handfast.process.landlock import Reach
from harness.forked import in_child, refusal

NOTHING = Reach()
NAMES_AND_TARGETS = Reach(read=True, connect=True)


def execute() -> None:
    os.execv("/bin/true", ["true"])  # noqa: S606 - it is refused


def within(reach: Reach, **attempts: Callable[[], object]) -> dict[str, str]:
    """Try things in a child with this reach and no filter; give how each was refused."""

    def work() -> dict[str, str]:
        landlock.restrict(reach)
        return {name: refusal(attempt) for name, attempt in attempts.items()}

    return in_child(work)


def test_this_machine_has_it() -> None:
    assert landlock.is_supported()


def test_without_reach_no_file_is_opened_and_none_made(tmp_path: Path) -> None:
    present = tmp_path / "present"
    present.write_text("data")

    found = within(
        NOTHING,
        read=present.read_bytes,
        write=lambda: present.write_text("more"),
        create=(tmp_path / "new").touch,
        list=lambda: list(tmp_path.iterdir()),
        remove=present.unlink,
        run=execute,
        make=(tmp_path / "directory").mkdir,
    )

    assert set(found.values()) == {"EACCES"}
    assert present.read_text() == "data"


def test_who_may_read_may_not_write_nor_run(tmp_path: Path) -> None:
    present = tmp_path / "present"
    present.write_text("data")

    found = within(
        NAMES_AND_TARGETS,
        read=present.read_bytes,
        list=lambda: list(tmp_path.iterdir()),
        write=lambda: present.write_text("more"),
        remove=present.unlink,
        run=execute,
    )

    assert found == {"read": "", "list": "", "write": "EACCES", "remove": "EACCES", "run": "EACCES"}


def test_ports_are_connected_to_only_with_leave_and_never_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        attempts: dict[str, Callable[[], object]] = {
            "connect": lambda: socket.create_connection(server.getsockname(), 5),
            "bind": lambda: socket.create_server(("127.0.0.1", 0)),
        }

        without = within(NOTHING, **attempts)
        relay = within(Reach(connect=True), **attempts)

    assert without == {"connect": "EACCES", "bind": "EACCES"}
    assert relay == {"connect": "", "bind": "EACCES"}


def test_abstract_sockets_and_other_processes_are_out_of_reach() -> None:
    name = b"\0handfast-test-" + os.urandom(8)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()

        found = within(
            NAMES_AND_TARGETS,
            abstract=lambda: socket.socket(socket.AF_UNIX).connect(name),
            signal=lambda: os.kill(os.getppid(), 0),
            itself=lambda: os.kill(os.getpid(), 0),
        )

    assert found == {"abstract": "EPERM", "signal": "EPERM", "itself": ""}


def test_a_unix_socket_with_a_name_is_for_who_may_read(tmp_path: Path) -> None:
    path = str(tmp_path / "target.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        found = within(NAMES_AND_TARGETS, named=lambda: socket.socket(socket.AF_UNIX).connect(path))

    assert found == {"named": ""}


def test_what_is_open_already_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as log:
        found = within(NOTHING, write=lambda: os.write(log.fileno(), b"line\n"))

    assert found == {"write": ""}
    assert path.read_text() == "line\n"


def test_a_system_that_refuses_it_is_one_without() -> None:
    def without(number: int) -> bool:
        refusing = seccompy.Filter()
        refusing.errno("landlock_create_ruleset", number)
        refusing.load()
        return landlock.is_supported()

    assert not in_child(lambda: without(errno.ENOSYS))  # an old kernel
    assert not in_child(lambda: without(errno.EPERM))  # a container
