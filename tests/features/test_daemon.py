"""In the background: what the command says before it returns, the pidfile, whom it runs as."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.clients import connect, echoes, read_to_end
from harness.front import Settings, dashed, write
from harness.instance import parse_line
from harness.processes import Watched, kill_and_wait, run_handfast

if TYPE_CHECKING:
    import ssl

    from conftest import Certificates
    from features.conftest import Start, Targets

NOBODY = pwd.getpwnam("nobody")


class Daemon:
    """One that `handfast serve --daemon` starts, by a configuration file."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.file = directory / "daemon.yaml"
        self.pidfile = directory / "daemon.pid"
        self.log = directory / "daemon.log"
        self.settings = {
            "nworkers": 1,
            "control": str(directory / "daemon.sock"),
            "pidfile": str(self.pidfile),
            "logfile": str(self.log),
            **settings,
        }

    def start(self) -> subprocess.CompletedProcess[str]:
        write(self.file, self.settings)
        return run_handfast("serve", "-c", str(self.file), "--daemon")

    def stop(self) -> subprocess.CompletedProcess[str]:
        return run_handfast("stop", "-c", str(self.file))

    @property
    def pid(self) -> int:
        return int(self.pidfile.read_text())

    @property
    def events(self) -> list[dict[str, str]]:
        return [parse_line(line) for line in self.log.read_text().splitlines()]

    @property
    def port(self) -> int:
        return int(next(e["listen_port"] for e in self.events if e["event"] == "listening"))


@pytest.fixture
def daemon(
    tmp_path: Path, targets: Targets, certificates: Certificates
) -> Iterator[Callable[..., Daemon]]:
    """Make a Daemon: `daemon(user="daemon")`; what runs at the end of the test is killed."""
    made: list[Daemon] = []

    def make(**settings: Any) -> Daemon:
        listener = {
            "listen": "127.0.0.1:0",
            "target": targets.says("hello"),
            "certificates": [{"chain": str(certificates.chain), "key": str(certificates.key)}],
        }
        found = Daemon(tmp_path, {"listeners": [listener], **dashed(settings)})
        made.append(found)
        return found

    yield make
    for each in made:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            kill_and_wait(each.pid)


Make = Callable[..., Daemon]


def test_the_command_returns_with_0_when_everything_serves(
    daemon: Make, context: ssl.SSLContext
) -> None:
    handfast = daemon()

    done = handfast.start()

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with connect(handfast.port, context) as client:
        assert read_to_end(client) == b"hello"


def test_it_leaves_the_session_the_directory_and_the_descriptors_of_its_caller(
    daemon: Make,
) -> None:
    handfast = daemon()
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)

    write(handfast.file, handfast.settings)

    command = [sys.executable, "-m", "handfast", "serve", "-c", str(handfast.file), "--daemon"]
    done = subprocess.run(command, check=False, close_fds=False, timeout=30)
    os.close(writing)

    assert done.returncode == 0
    with os.fdopen(reading, "rb") as stream:
        assert stream.read() == b""  # nobody holds the other end any more
    proc = Path(f"/proc/{handfast.pid}")
    assert os.getsid(handfast.pid) not in {os.getsid(0), handfast.pid}
    assert (proc / "cwd").readlink() == Path("/")
    assert {str((proc / f"fd/{number}").readlink()) for number in range(3)} == {"/dev/null"}
    assert int((proc / "stat").read_text().rpartition(")")[2].split()[4]) == 0  # no terminal


def test_it_drains_and_removes_its_pidfile_when_it_is_stopped(daemon: Make) -> None:
    handfast = daemon()
    assert handfast.start().returncode == 0
    ended = Watched(handfast.pid)

    assert handfast.stop().returncode == 0

    ended.wait()
    assert not handfast.pidfile.exists()
    assert handfast.events[-1]["event"] == "stopped"


def test_sigterm_ends_it_as_well(daemon: Make) -> None:
    handfast = daemon()
    assert handfast.start().returncode == 0
    ended = Watched(handfast.pid)

    os.kill(handfast.pid, signal.SIGTERM)

    ended.wait()
    assert not handfast.pidfile.exists()


def test_it_reloads_by_the_name_that_it_was_started_with(
    daemon: Make, targets: Targets, context: ssl.SSLContext
) -> None:
    handfast = daemon()
    write(handfast.file, handfast.settings)
    done = subprocess.run(
        [sys.executable, "-m", "handfast", "serve", "-c", handfast.file.name, "--daemon"],
        check=False,
        cwd=handfast.file.parent,
        timeout=30,
    )
    assert done.returncode == 0
    handfast.settings["listeners"][0]["target"] = targets.says("new")
    write(handfast.file, handfast.settings)

    assert run_handfast("reload", "-c", str(handfast.file)).returncode == 0

    with connect(handfast.port, context) as client:
        assert read_to_end(client) == b"new"


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"nworkers": "many"}, 2, "nworkers"),
        ({"user": "nobody-here"}, 2, "there is no user 'nobody-here'"),
        ({"logfile": "-"}, 2, "a daemon has no standard output to log to"),
        ({"logfile": "/nowhere/log"}, 2, "/nowhere/log: cannot open the log file"),
        ({"chroot": "/nowhere"}, 2, "chroot: /nowhere: No such file or directory"),
        ({"pidfile": "/nowhere/pid"}, 2, "/nowhere/pid: cannot write the pidfile"),
    ],
)
def test_a_mistake_is_told_to_the_caller_who_gets_the_exit_code(
    daemon: Make, settings: Settings, code: int, said: str
) -> None:
    done = daemon(**settings).start()

    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_that_only_the_template_finds_is_told_to_the_caller(daemon: Make) -> None:
    handfast = daemon()
    certificate = handfast.settings["listeners"][0]["certificates"][0]
    certificate["key"] = "/nowhere/key.pem"

    done = handfast.start()

    assert done.returncode == 2
    assert "line " in done.stderr
    assert "/nowhere/key.pem: cannot be read: No such file or directory" in done.stderr
    assert not handfast.pidfile.exists()


def test_a_port_that_is_taken_is_told_to_the_caller(daemon: Make) -> None:
    handfast = daemon()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        handfast.settings["listeners"][0]["listen"] = where
        done = handfast.start()

    assert done.returncode == 1
    assert f"cannot listen on {where}: Address already in use" in done.stderr
    assert not handfast.pidfile.exists()


def test_a_second_one_says_who_holds_the_pidfile_and_leaves_the_first_alone(
    daemon: Make, context: ssl.SSLContext, tmp_path: Path
) -> None:
    first = daemon()
    assert first.start().returncode == 0
    second = Daemon(tmp_path, {**first.settings, "control": str(tmp_path / "other.sock")})

    done = second.start()

    assert done.returncode == 1
    assert f"running already, as process {first.pid}" in done.stderr
    with connect(first.port, context) as client:
        assert read_to_end(client) == b"hello"


def test_a_pidfile_that_a_killed_one_left_is_taken_over(
    daemon: Make, context: ssl.SSLContext
) -> None:
    handfast = daemon()
    assert handfast.start().returncode == 0
    before = handfast.pid
    kill_and_wait(before)
    assert handfast.pid == before  # it was left behind

    done = handfast.start()

    assert done.returncode == 0, done.stderr
    assert handfast.pid != before


def test_a_pidfile_that_names_a_stranger_is_taken_over_and_the_stranger_lives(
    daemon: Make,
) -> None:
    handfast = daemon()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        handfast.pidfile.write_text(f"{stranger.pid}\n")

        done = handfast.start()

        assert done.returncode == 0, done.stderr
        assert handfast.pid != stranger.pid
        assert stranger.poll() is None
        stranger.communicate()


# Whom it runs as


def of(pid: int, field: str) -> list[str]:
    """Give what the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(f"{field}:"))


WORKERS = ("template", "acceptor-1", "relay-1")


def test_what_meets_the_network_is_nobody_in_an_empty_directory(
    start: Start, targets: Targets
) -> None:
    pids = start({"target": targets.echo()}).pids()

    for name in WORKERS:
        assert of(pids[name], "Uid") == [str(NOBODY.pw_uid)] * 4
        assert of(pids[name], "Gid") == [str(NOBODY.pw_gid)] * 4
        assert of(pids[name], "Groups") == []
        assert of(pids[name], "CapPrm") == of(pids[name], "CapBnd") == ["0" * 16]
        root = Path(f"/proc/{pids[name]}/root")
        assert root.readlink() == Path("/run/handfast/empty")
        assert [*root.iterdir()] == []


def test_user_group_and_chroot_are_as_they_are_set(
    start: Start, targets: Targets, public_path: Path, context: ssl.SSLContext
) -> None:
    front = start(
        {"target": targets.echo()}, user="daemon", group="nogroup", chroot=str(public_path)
    )
    pids = front.pids()

    for name in WORKERS:
        assert of(pids[name], "Uid")[0] == str(pwd.getpwnam("daemon").pw_uid)
        assert Path(f"/proc/{pids[name]}/root").readlink() == public_path
    with connect(front.port(), context) as client:
        assert echoes(client)


def test_isolation_that_is_required_serves_where_it_is_complete(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()}, isolation="required")

    with connect(front.port(), context) as client:
        assert echoes(client)
    assert not front.events(level="WARN")


def test_a_low_port_is_bound_before_privileges_are_dropped(start: Start, targets: Targets) -> None:
    # In a network of its own every port is free.
    front = start(
        {"listen": "127.0.0.1:443", "target": targets.echo()},
        wrapper=("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"'),
    )

    assert front.port() == 443
    assert of(front.pids()["acceptor-1"], "Uid")[0] == str(NOBODY.pw_uid)


def test_started_by_a_user_it_does_without_root(
    targets: Targets, public_path: Path, certificates: Certificates, context: ssl.SSLContext
) -> None:
    listener = {
        "listen": "127.0.0.1:0",
        "target": targets.says("hello"),
        "certificates": [{"chain": "server.pem", "key": "server-key.pem"}],
    }
    certificates.server.write(public_path, "server")
    for path in (public_path, public_path / "server-key.pem"):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    handfast = Daemon(public_path, {"listeners": [listener]})
    write(handfast.file, handfast.settings)

    # It may read all files, since the interpreter is perhaps in root's own directory.
    user = "--reuid=nobody --regid=nogroup --clear-groups --bounding-set=-all,+dac_read_search"
    may_read = "--inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search"
    command = [sys.executable, "-m", "handfast", "serve", "-c", str(handfast.file), "--daemon"]
    done = subprocess.run(
        ["setpriv", *user.split(), *may_read.split(), *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    try:
        assert done.returncode == 0, done.stderr
        assert of(handfast.pid, "Uid")[0] == str(NOBODY.pw_uid)
        with connect(handfast.port, context) as client:
            assert read_to_end(client) == b"hello"
        for pid in children(handfast.pid):
            assert of(pid, "NoNewPrivs") == ["1"]
            assert of(pid, "Seccomp") == ["2"]
            assert of(pid, "CapPrm") == ["0" * 16]
    finally:
        kill_and_wait(handfast.pid)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
