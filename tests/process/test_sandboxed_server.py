"""The demonstration in examples/sandboxed_server, played for real: what arrives, what leaks, and
what each of its three processes can reach."""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import json
import os
import pwd
import re
import runpy
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import seccompy

from handfast.process import linux
from harness.forked import in_child
from harness.homes import TIMEOUT
from harness.processes import Watched

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "sandboxed_server"
NOBODY: Final = pwd.getpwnam("nobody")
THE_THREE: Final = {"admin", "acceptor", "server"}
WHO_MAY: Final = {
    "find the key in its memory": {"acceptor"},
    "find the secret in its memory": {"server"},
    "find a listening socket": {"acceptor"},
    "find the client's socket": {"server"},
    "send on the channel": {"acceptor"},
    "read the key file": set(),
    "read /etc/passwd": set(),
    "make a listening socket": set(),
    "connect out": set(),
    "fork": set(),
    "run a program": set(),
    "signal another process": set(),
    "open another's /proc/PID/mem": set(),
    "read another's memory": set(),
    "become root": set(),
}
HELD_BY_SECCOMP_ALONE: Final = {"make a listening socket", "fork"}
HANDSHAKE: Final = 22
APPLICATION_DATA: Final = 23
PR_SET_CHILD_SUBREAPER: Final = 36


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(EXAMPLE), *arguments]


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with its files in a directory."""
    environment = {**os.environ, "TMPDIR": str(directory)}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, check=False,
        env=environment,
    )  # fmt: skip


def played(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Give what a command that went well has printed for programs."""
    assert (done.returncode, done.stderr) == (0, "")
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def who_reached(seen: dict[str, Any]) -> dict[str, set[str]]:
    """Give the processes that reached something, by what it was."""
    return {
        attempt: {name for name, reached in by.items() if reached}
        for attempt, by in seen["reached"].items()
    }


def record_types(stream: bytes) -> list[int]:
    """Give the types of the records in one direction's bytes, which have to be TLS to the last."""
    types = []
    while stream:
        assert stream[1] == 3, stream[:5]
        end = 5 + int.from_bytes(stream[3:5], "big")
        assert end <= len(stream)
        types.append(stream[0])
        stream = stream[end:]
    return types


def check_what_was_seen(seen: dict[str, Any], *, clear: bool) -> None:
    """Check all that holds whoever plays it, where every fence can be had."""
    secret = seen["secret"].encode()
    to_server, to_client = (
        base64.b64decode(seen["recording"][name]) for name in ("to_server", "to_client")
    )
    assert seen["arrived"]
    assert seen["succeeded"]
    assert f"got the secret: {secret.decode()}" in [t for n, t in seen["said"] if n == "server"]
    assert seen["overheard"] == clear
    assert (secret in to_server) == clear
    if clear:
        assert to_server == secret + b"\n"
    else:
        for direction in (to_server, to_client):
            types = record_types(direction)
            assert types[0] == HANDSHAKE
            assert types[-1] == APPLICATION_DATA
    assert set(seen["pids"]) == {"client", "middle", *THE_THREE}
    assert len(set(seen["pids"].values())) == 5
    if not seen["missing"]:
        assert who_reached(seen) == WHO_MAY
        assert seen["refusals"]["send on the channel"]["server"] == "EPIPE"


def check_nothing_is_left(seen: dict[str, Any], directory: Path) -> None:
    """Check that processes and files are gone."""
    for pid in seen["pids"].values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("clear", [False, True])
def test_the_secret_arrives_and_is_overheard_only_in_the_clear(
    public_path: Path, clear: bool
) -> None:
    seen = played(run(public_path, "--json", *(["--clear"] if clear else [])))

    check_what_was_seen(seen, clear=clear)
    user = NOBODY.pw_uid if os.geteuid() == 0 else os.getuid()
    assert seen["users"] == dict.fromkeys(THE_THREE, user)
    check_nothing_is_left(seen, public_path)


def test_the_server_has_neither_the_key_nor_a_way_to_listen(public_path: Path) -> None:
    seen = played(run(public_path, "--json"))

    reached = who_reached(seen)
    assert "server" not in reached["find the key in its memory"]
    assert "server" not in reached["read the key file"]
    assert "server" not in reached["find a listening socket"]
    if not seen["missing"]:
        refusals = {attempt: by["server"] for attempt, by in seen["refusals"].items()}
        assert refusals["read the key file"] == "EPERM"
        assert refusals["make a listening socket"] == "EPERM"


def become_ordinary() -> None:
    """Be a user without privileges, as if never anything else."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY.pw_gid, NOBODY.pw_gid, NOBODY.pw_gid)
        os.setresuid(NOBODY.pw_uid, NOBODY.pw_uid, NOBODY.pw_uid)
        linux.prctl(linux.PR_SET_DUMPABLE, 1)  # as every process is that was just started


def program(directory: Path) -> Callable[[list[str]], int]:
    """Import the program in this child, which may be unable to read it afterwards."""
    tempfile.tempdir = str(directory)
    sys.path.insert(0, str(EXAMPLE))
    main: Callable[[list[str]], int] = runpy.run_path(str(EXAMPLE / "__main__.py"))["main"]
    return main


@pytest.mark.parametrize("clear", [False, True])
def test_an_ordinary_user_has_the_same_fences_but_for_the_account(
    public_path: Path, clear: bool
) -> None:
    files = public_path / "files"
    files.mkdir()
    files.chmod(0o777)

    def work() -> list[Any]:
        main = program(files)
        become_ordinary()
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = main(["--json", *(["--clear"] if clear else [])])
        return [code, json.loads(printed.getvalue()), os.getuid()]

    code, seen, user = in_child(work)

    assert code == 0
    check_what_was_seen(seen, clear=clear)
    assert seen["users"] == dict.fromkeys(THE_THREE, user)
    assert user != 0
    check_nothing_is_left(seen, files)


def without(*calls: str) -> None:
    """Make this process and its children live on a kernel without these."""
    forgetting = seccompy.Filter()
    for call in calls:
        forgetting.errno(call, errno.ENOSYS)
    forgetting.load()


def played_without(directory: Path, *calls: str) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        without(*calls)
        return played(run(directory, "--json"))

    return in_child(work)


def test_without_landlock_seccomp_holds_all_of_it_and_the_lack_is_told(public_path: Path) -> None:
    seen = played_without(public_path, "landlock_create_ruleset")

    assert who_reached(seen) == WHO_MAY
    assert [each.partition(" ")[0] for each in seen["missing"]] == ["landlock"]


def test_without_seccomp_what_it_alone_holds_is_shown_as_reached(public_path: Path) -> None:
    seen = played_without(public_path, "seccomp")

    reached = who_reached(seen)
    assert "seccomp" in [each.partition(" ")[0] for each in seen["missing"]]
    for attempt in HELD_BY_SECCOMP_ALONE:
        assert reached[attempt] == THE_THREE
    for attempt in ("read the key file", "read /etc/passwd", "become root", "send on the channel",
                    "find the key in its memory", "find the secret in its memory"):  # fmt: skip
        assert reached[attempt] == WHO_MAY[attempt]


@pytest.mark.parametrize("clear", [False, True])
def test_it_fits_80_columns_of_plain_text(public_path: Path, clear: bool) -> None:
    done = run(public_path, *(["--clear"] if clear else []))

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert lines[0].split(" | ") == [
        "CLIENT                  ",
        "MAN IN THE MIDDLE      ",
        "SERVER",
    ]
    client, middle, server = (
        " ".join(line.split("|")[column].strip() for line in lines if line.count("|") == 2)
        for column in range(3)
    )
    secret = re.search(r"its secret: ([0-9a-f]{20})", client)
    assert secret is not None
    assert f"got the secret: {secret[1]}" in server
    assert (secret[1][:10] in middle) == clear
    for name in THE_THREE:
        assert re.search(rf"\b{name} [0-9]+\b", server)
    assert re.search(r"^read the key file( +no\S* \S+){3}$", done.stdout, re.MULTILINE)
    there = "is in it." if clear else "is not in it."
    assert lines[-1].endswith(f"the secret {there}")


@pytest.mark.parametrize("arguments", [["--serve", "70000"], ["--serve", "0", "--json"], ["x"]])
def test_wrong_usage_is_told_so(public_path: Path, arguments: list[str]) -> None:
    done = run(public_path, *arguments)

    assert done.returncode == 2
    assert done.stderr.startswith("usage: sandboxed_server")


class Serving:
    """The server alone, as a user starts it to try it out."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            command("--serve", "0", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(directory)},
        )
        self.pids: dict[str, int] = {}
        self.port = int(self.wait("accepts on port ").rpartition(" ")[2])
        while set(self.pids) != THE_THREE:
            self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        if found := re.match(r"(\w+) (\d+): ", line):
            self.pids[found[1]] = int(found[2])
        return line.rstrip()

    def wait(self, pattern: str) -> str:
        """Wait for a line that matches."""
        while not re.search(pattern, line := self._line()):
            pass
        return line

    def context(self) -> ssl.SSLContext:
        (ca,) = self.directory.glob("*/certificate/ca.pem")
        return ssl.create_default_context(cafile=str(ca))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), TIMEOUT)


@pytest.fixture
def serving(public_path: Path) -> Iterator[Serving]:
    running = Serving(public_path)
    with running.process:
        yield running
        running.process.kill()


def test_a_client_that_goes_away_does_no_harm(serving: Serving) -> None:
    context = serving.context()

    serving.connect().close()
    serving.wait("lost a client: it went away in the handshake")
    with serving.connect() as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
    serving.wait("lost a client: plain HTTP on the TLS port")
    with context.wrap_socket(serving.connect(), server_hostname="localhost") as client:
        client.sendall(b"half a sec")
        serving.wait("server .*has a session")
    serving.wait("server .*(went away|reset by peer)")  # which, is a matter of tickets unread
    with context.wrap_socket(serving.connect(), server_hostname="localhost") as client:
        client.sendall(b"a secret\n")
        assert client.recv(100).startswith(b"sha256 ")
        client.unwrap()
    serving.wait("the client said goodbye")


def test_a_client_that_lies_to_the_server_loses_its_own_connection(serving: Serving) -> None:
    context = serving.context()
    with (
        context.wrap_socket(serving.connect(), server_hostname="localhost") as other,
        serving.connect() as raw,
    ):
        secured = context.wrap_socket(raw, server_hostname="localhost")
        under = socket.socket(fileno=os.dup(secured.fileno()))
        with under, secured:
            under.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            serving.wait("a record does not authenticate")
        other.sendall(b"a secret\n")

        assert other.recv(100).startswith(b"sha256 ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_of_them(serving: Serving, number: signal.Signals) -> None:
    everybody = Watched(*serving.pids.values())

    serving.process.send_signal(number)

    assert serving.process.wait(TIMEOUT) == 0
    everybody.wait()
    assert list(serving.directory.iterdir()) == []


@pytest.mark.parametrize("victim", ["admin", "acceptor", "server"])
def test_when_one_of_the_three_dies_all_end(serving: Serving, victim: str) -> None:
    everybody = Watched(*serving.pids.values())

    os.kill(serving.pids[victim], signal.SIGKILL)

    assert serving.process.wait(TIMEOUT) == 1
    everybody.wait()
    assert list(serving.directory.iterdir()) == []


def test_when_the_program_is_killed_its_processes_end(serving: Serving) -> None:
    everybody = Watched(*serving.pids.values())

    serving.process.kill()

    everybody.wait()


def test_ctrl_c_in_the_middle_of_the_play_leaves_nothing(public_path: Path) -> None:
    def interrupt(_scene: object, line: Any, _port: int) -> int:
        os.kill(os.getppid(), signal.SIGINT)
        line.hear()
        return 0

    def work() -> list[Any]:
        linux.prctl(PR_SET_CHILD_SUBREAPER, 1)  # whoever is left over becomes our child
        main = program(public_path)
        sys.modules["client"].main = interrupt  # type: ignore[attr-defined]  # a module's name
        code = main([])
        orphans = []
        with contextlib.suppress(ChildProcessError):
            while True:
                orphans.append(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]))
        return [code, orphans]

    code, orphans = in_child(work)

    assert code == 1
    assert set(orphans) <= {-signal.SIGKILL}
    assert list(public_path.iterdir()) == []
