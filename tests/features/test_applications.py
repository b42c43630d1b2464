"""Sessions that are handed over to an application, by a real handfast."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from features.world import auth_of, greeting
from handfast import app
from harness.clients import connect, echoes, read_to_end
from harness.homes import TIMEOUT
from harness.injection import memory_has
from harness.instance import wait_for
from harness.processes import descriptors
from harness.secrets import connect_and_tell
from harness.streams import memory_client, random_bytes, sha256

if TYPE_CHECKING:
    from conftest import Certificates
    from features.conftest import Start, Targets
    from features.world import World

Serve = Callable[[app.Connection], None]


def echo(connection: app.Connection) -> None:
    while data := connection.read():
        connection.write(data)


class Application:
    """An application in this process, with a thread for each connection."""

    def __init__(self, path: Path, serve: Serve = echo) -> None:
        self.path = path
        self.connections: list[app.Connection] = []
        self.errors: list[Exception] = []
        self._serve = serve
        self._listener = app.listen(path, mode=0o666, trusted=("nobody",))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    @property
    def target(self) -> str:
        return f"handoff:{self.path}"

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                connection = self._listener.accept(timeout=0.05)
            except TimeoutError:
                continue
            connection.timeout = TIMEOUT
            self.connections.append(connection)
            thread = threading.Thread(target=self._handle, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _handle(self, connection: app.Connection) -> None:
        try:
            with connection:
                self._serve(connection)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.errors.append(error)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
        self._listener.close()


Applications = Callable[..., Application]


@pytest.fixture
def application(public_path: Path) -> Iterator[Applications]:
    """Run applications: `application()`, `application(serve)`."""
    with ExitStack() as stack:

        def run(serve: Serve = echo, name: str = "app.sock") -> Application:
            made = Application(public_path / name, serve)
            stack.callback(made.close)
            return made

        yield run


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_application_gets_the_session_itself(
    start: Start, application: Applications, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    running = application()
    front = start({"target": running.target, "alpn": ["echo"]})

    with memory_client(front.port(), certificates.ca, version) as client:
        data = random_bytes(2_000_000)
        assert client.exchange(data, len(data)) == sha256(data)
        client.close_write()
        assert client.read() == b""

    told = front.wait("proxy", subevent="handed_over")
    assert told["server_ip"] == running.target
    assert told["transport"] == "user"
    assert not front.events("proxy", subevent="client_disconnect")
    assert front.status()["totals"]["handed_over"] == 1
    assert not running.errors


def greet(connection: app.Connection) -> None:
    """Say who the client is."""
    peer = connection.peer
    who = x509.load_der_x509_certificate(peer.certificate).subject if peer.certificate else None
    name = who.rfc4514_string() if who else "nobody"
    connection.write(f"{peer.address} {peer.port} {peer.sni} {peer.alpn} {name}".encode())


def test_an_application_knows_its_client(
    start: Start, application: Applications, world: World, context: ssl.SSLContext
) -> None:
    running = application(greet)
    front = start({"target": running.target, "client_auth": auth_of(world), "alpn": ["a", "b"]})
    for client, name in ((world.shows(world.alice), "CN=alice"), (context, "nobody")):
        client.set_alpn_protocols(["b"])
        with connect(front.port(), client) as connection:
            host, port = connection.getsockname()
            assert read_to_end(connection).decode() == f"{host} {port} localhost b {name}"


def test_behind_a_proxy_header_the_client_is_the_one_it_tells_of(
    start: Start, application: Applications, context: ssl.SSLContext
) -> None:
    running = application(greet)
    front = start({"target": running.target, "accept_proxy": ["127.0.0.1"]})
    lead = b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 443\r\n"

    with connect(front.port(), context, lead=lead) as connection:
        assert read_to_end(connection).startswith(b"192.0.2.7 51234 localhost")
    assert running.connections[0].peer.local == ("198.51.100.1", 443)


def test_sessions_go_to_applications_and_to_other_targets_by_turns(
    start: Start, application: Applications, targets: Targets, context: ssl.SSLContext
) -> None:
    first = application(lambda connection: connection.write(b"first"), "first.sock")
    second = application(lambda connection: connection.write(b"second"), "second.sock")
    front = start({"targets": [first.target, second.target, targets.says("third")]})

    said = sorted(greeting(front, context) for _ in range(6))

    assert said == ["first", "first", "second", "second", "third", "third"]


def test_an_application_that_is_not_there_is_passed_over_until_it_is(
    start: Start,
    application: Applications,
    targets: Targets,
    public_path: Path,
    context: ssl.SSLContext,
) -> None:
    path = public_path / "late.sock"
    front = start({"targets": [f"handoff:{path}", targets.says("other")]})
    assert [greeting(front, context) for _ in range(3)] == ["other"] * 3
    down = front.wait("target", state="down")
    assert down["error_msg"] == f"cannot connect to {path}"
    assert down["error_desc"] == "No such file or directory"

    application(lambda connection: connection.write(b"late"), "late.sock")

    wait_for(lambda: greeting(front, context) == "late", "the application is found")
    front.wait("target", state="up")


@pytest.fixture
def others(public_path: Path) -> Iterator[Callable[[int], str]]:
    """Run applications of other users, where anybody could have: `others(1234)` gives the target.

    They keep what they get to themselves.
    """
    processes: list[int] = []
    shared = public_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)

    def run(user: int) -> str:
        path = shared / f"{user}.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind(str(path))
            path.chmod(0o666)
            pid = os.fork()
            if not pid:
                os.setuid(user)
                sock.listen()
                held = []
                while True:
                    held.append(sock.accept())
            processes.append(pid)
        wait_for(lambda: is_listening(path), "it listens")
        return f"handoff:{path}"

    yield run
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        return sock.connect_ex(str(path)) == 0


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be others")


@needs_root
def test_the_application_of_another_user_gets_no_session(
    start: Start, others: Callable[[int], str], targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"targets": [others(1234), targets.says("other")]})

    assert [greeting(front, context) for _ in range(2)] == ["other"] * 2
    down = front.wait("target", state="down")
    assert down["error_msg"] == "the application is not one to be trusted"
    where = Path(down["address"].removeprefix("handoff:")).parent
    assert down["error_desc"] == f"others can write to {where}; name the `user` of the target"


@needs_root
def test_the_user_that_the_configuration_names_is_the_one_who_gets_it(
    start: Start, others: Callable[[int], str], certificates: Certificates
) -> None:
    address = others(1234)
    front = start(
        {"targets": [{"address": address, "user": "4321"}]},
        {"targets": [{"address": address, "user": "1234"}], "name": "right"},
        connect_timeout="500ms",
    )
    for number, expected in enumerate(("it is of user 1234, not 4321", "it gave no answer")):
        client = memory_client(front.port(number), certificates.ca)
        with client as cut_off, pytest.raises((ssl.SSLError, ConnectionError)):
            cut_off.read()
        told = front.wait("proxy", number + 1, subevent="server_connect")
        assert told["error_desc"].startswith(expected)


def test_a_user_that_is_not_there_is_told_by_check(tmp_path: Path, start: Start) -> None:
    front = start({"target": "handoff:/run/a.sock"})
    front.listener["targets"] = [{"address": "handoff:/run/a.sock", "user": "no-such-user"}]
    del front.listener["target"]
    front.save()

    said = front.command("check")

    assert said.returncode == 2
    assert "there is no user 'no-such-user' here" in said.stderr


def test_check_shows_where_sessions_go(start: Start) -> None:
    front = start({"target": "handoff:/run/a.sock"})

    said = front.command("check")

    assert " -> handoff:/run/a.sock  CN=localhost" in said.stdout


def test_an_application_that_is_killed_takes_its_clients_along_and_no_end_is_made_up(
    start: Start, public_path: Path, certificates: Certificates
) -> None:
    path = public_path / "app.sock"
    program = (
        "import sys; from handfast import app\n"
        f"for each in app.listen({str(path)!r}, mode=0o666, trusted=['nobody']):\n"
        "    each.write(b'hello')\n"
        "    each.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        wait_for(path.is_socket, "it listens")
        front = start({"target": f"handoff:{path}"})
        with memory_client(front.port(), certificates.ca) as client:
            assert client.read_exactly(5) == b"hello"
            process.kill()
            process.wait(TIMEOUT)
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                client.read_exactly(1)


def test_sessions_outlive_handfast(
    start: Start, application: Applications, context: ssl.SSLContext
) -> None:
    """They are the application's: no drain waits for them, and no stop ends them."""
    front = start({"target": application().target})
    with connect(front.port(), context) as client:
        assert echoes(client)
        front.stop()
        assert echoes(client, random_bytes(100_000))


def test_a_reload_changes_where_sessions_go_and_leaves_those_that_went(
    start: Start, application: Applications, context: ssl.SSLContext
) -> None:
    before, after = application(echo, "before.sock"), application(greet, "after.sock")
    front = start({"target": before.target})
    with connect(front.port(), context) as client:
        assert echoes(client)
        front.reloaded(target=after.target)
        with connect(front.port(), context) as other:
            assert b"localhost" in read_to_end(other)
        assert echoes(client)


def test_many_clients_at_once_leave_nothing_behind(
    start: Start, application: Applications, context: ssl.SSLContext
) -> None:
    running = application()
    front = start({"target": running.target})
    with connect(front.port(), context) as client:
        assert echoes(client)
    relay = front.pids("relay")["relay-1"]
    before = descriptors(relay)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(front.port(), context)) for _ in range(60)]
        for each in clients:
            assert echoes(each, random_bytes(20_000))
        assert descriptors(relay) == before  # it has none of them, though all are open
    assert front.status()["totals"]["handed_over"] == 61
    assert front.status()["totals"]["active"] == 0


@needs_root
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_the_secrets_of_a_session_leave_the_memory_of_the_relay_with_it(
    start: Start, application: Applications, version: str
) -> None:
    """That they are there before is proved in test_isolation."""
    front = start({"target": application().target})
    relay = front.pids("relay")["relay-1"]
    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as sock:
        sock.settimeout(None)
        client, told = connect_and_tell(sock, version)
        client.sendall(b"there and back")
        assert client.recv(100) == b"there and back"

        assert memory_has(relay, *told.secrets, *told.keys) == set()
        client.shutdown()
