"""kill -9 at each step of an upgrade: what is lost is what the process held, and no more."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from harness.backends import Backend
from harness.clients import connect, echoes, trusting
from harness.instance import Instance, wait_for
from harness.processes import Watched, title

if TYPE_CHECKING:
    from conftest import Certificates, Serve

CLIENTS = 12


class Scene:
    """A handfast with two relays, clients of both, and an upgrade in the background."""

    def __init__(self, front: Instance, context: ssl.SSLContext, stack: ExitStack) -> None:
        self.front = front
        self.context = context
        self.clients = [stack.enter_context(connect(front.port(), context)) for _ in range(CLIENTS)]
        self.before = front.pids()
        held = {
            (each["client_port"], each["worker_id"])
            for each in front.events("proxy", subevent="server_connect")
        }
        self.holders = dict(held)
        self.done: list[subprocess.CompletedProcess[str]] = []
        self._upgrade = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.done.append(self.front.command("upgrade", "--json"))

    def begin(self) -> None:
        """Begin the upgrade."""
        self._upgrade.start()

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end."""
        self._upgrade.join(60)
        return self.done[0]

    def spawned(self, name: str, count: int) -> int:
        """Wait until a process of this name was started so often; give the last one's PID."""
        found = self.front.wait("worker", count, worker_state="spawned", worker_id=name)
        return int(found["worker_pid"])

    def gives_way(self) -> None:
        """Wait until the new processes serve, and the old ones are told to give way."""
        self.front.wait("listening", 2)

    def living(self) -> list[ssl.SSLSocket]:
        """The clients whose connections go on."""
        return [each for each in self.clients if answers(each)]

    def of(self, relay: str) -> list[ssl.SSLSocket]:
        """The clients that a relay had before."""
        return [
            each
            for each in self.clients
            if self.holders[str(each.getsockname()[1])] == relay
        ]  # fmt: skip

    def accepts(self) -> bool:
        """Tell whether a new client is served."""
        try:
            with connect(self.front.port(), self.context) as client:
                return echoes(client)
        except OSError:
            return False


def answers(client: ssl.SSLSocket) -> bool:
    try:
        return echoes(client)
    except OSError:
        return False


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # it was killed meanwhile


@pytest.fixture
def scene(serve: Serve, backend: Backend, certificates: Certificates) -> Iterator[Scene]:
    with ExitStack() as stack:
        made = Scene(serve(backend.named), trusting(certificates.ca), stack)
        assert {*made.holders.values()} == {"relay-1", "relay-2"}
        yield made


def test_the_proof_is_killed(scene: Scene) -> None:
    scene.begin()
    os.kill(scene.spawned("proof", 1), signal.SIGKILL)

    done = scene.finish()

    assert done.returncode == 1
    assert "killed by signal 9" in done.stderr
    assert scene.living() == scene.clients
    assert scene.front.pids() == scene.before
    assert scene.accepts()


@pytest.mark.parametrize("name", ["relay-1", "resolver", "acceptor-2"])
def test_a_new_process_is_killed_as_soon_as_it_is_there(scene: Scene, name: str) -> None:
    scene.begin()
    os.kill(scene.spawned(name, 2), signal.SIGKILL)

    done = scene.finish()

    assert done.returncode == 0, done.stderr
    assert scene.living() == scene.clients
    assert scene.accepts()


def test_the_new_template_is_killed_and_the_old_processes_serve_on(scene: Scene) -> None:
    scene.begin()
    os.kill(scene.spawned("template", 2), signal.SIGKILL)

    done = scene.finish()

    if done.returncode:  # else it had loaded the files already, and was started again
        assert "the process that reads the files died" in done.stderr
        assert scene.living() == scene.clients
        assert scene.front.command("upgrade").returncode == 0
    assert scene.living() == scene.clients
    assert scene.accepts()


def test_an_old_relay_that_is_killed_takes_its_own_connections_with_it(scene: Scene) -> None:
    victim = scene.before["relay-1"]
    with stopped(victim):
        scene.begin()
        scene.gives_way()
        os.kill(victim, signal.SIGKILL)

    done = scene.finish()

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["died"] == ["relay 1 killed by signal 9 (Killed)"]
    assert report["moved"] == len(scene.of("relay-2"))
    assert scene.living() == scene.of("relay-2")
    assert scene.accepts()


def test_a_new_relay_that_is_killed_takes_what_had_come_to_it(scene: Scene) -> None:
    late = scene.before["relay-2"]
    with stopped(late):
        scene.begin()
        scene.gives_way()
        wait_for(lambda: moved(scene) == len(scene.of("relay-1")), "those of relay 1 to be moved")
        os.kill(scene.front.pids("relay-1")["relay-1"], signal.SIGKILL)
        scene.spawned("relay-1", 3)

    done = scene.finish()

    assert done.returncode == 0, done.stderr
    living = scene.living()
    assert set(scene.of("relay-2")) <= set(living)
    assert len(living) < CLIENTS
    assert scene.accepts()


def moved(scene: Scene) -> int:
    return int(scene.front.status()["totals"]["moved"])


@pytest.mark.parametrize("name", ["acceptor-1", "template", "resolver"])
def test_an_old_process_without_connections_is_killed(scene: Scene, name: str) -> None:
    victim = scene.before[name]
    with stopped(victim):
        scene.begin()
        scene.gives_way()
        os.kill(victim, signal.SIGKILL)

    done = scene.finish()

    assert done.returncode == 0, done.stderr
    assert scene.living() == scene.clients
    assert scene.accepts()


@pytest.mark.parametrize("step", ["proof", "bring-up", "giving way"])
def test_the_supervisor_is_killed_and_leaves_nobody_behind(
    serve: Serve, backend: Backend, step: str
) -> None:
    front = serve(backend.target)
    steps: dict[str, Callable[[], object]] = {
        "proof": lambda: front.wait("worker", worker_state="spawned", worker_id="proof"),
        "bring-up": lambda: front.wait("worker", 2, worker_state="spawned", worker_id="relay-1"),
        "giving way": lambda: front.wait("listening", 2),
    }
    before = front.pids()
    watched = Watched(*before.values())

    os.kill(before["supervisor"], signal.SIGUSR2)
    steps[step]()
    spawned = front.events("worker", worker_state="spawned")
    front.kill()

    watched.wait()
    wait_for(lambda: not any(is_ours(each["worker_pid"]) for each in spawned), "all to end")


def is_ours(pid: str) -> bool:
    try:
        return title(int(pid)).startswith("handfast: ")
    except FileNotFoundError:
        return False
