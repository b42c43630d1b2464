"""Upgrades of a running handfast, with clients that notice nothing."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conftest import Certificates
from features.conftest import Start, Targets
from handfast import __version__
from harness.backends import over_tls, server_context
from harness.clients import connect, echoes, read_to_end, receive
from harness.front import Front
from harness.homes import IN_GUEST, IN_KERNEL, TIMEOUT, sized
from harness.installation import Installation
from harness.instance import wait_for
from harness.processes import descriptors
from harness.streams import memory_client, random_bytes, sha256

MEGABYTE = 1 << 20
REPOSITORY = Path(__file__).parents[2]


def upgrade(front: Front, *arguments: str) -> subprocess.CompletedProcess[str]:
    return front.command("upgrade", *arguments)


def upgraded(front: Front, *arguments: str) -> dict[str, Any]:
    """Upgrade, and give what the command says of it."""
    done = upgrade(front, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["died"] == []
    return answer


@pytest.fixture(scope="session")
def another(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Another version, installed beside the one that the tests are of."""
    return Installation(tmp_path_factory.mktemp("another") / "venv", "98.7")


@pytest.fixture
def installed(tmp_path: Path) -> Installation:
    """An installation of its own, for a test that breaks it."""
    return Installation(tmp_path / "venv", "1.0")


@pytest.fixture
def clients(context: ssl.SSLContext) -> Iterator[Callable[..., ssl.SSLSocket]]:
    """Connect clients that are closed at the end."""
    with ExitStack() as stack:

        def client(front: Front, **options: Any) -> ssl.SSLSocket:
            return stack.enter_context(connect(front.port(), context, **options))

        yield client


# What clients see of it: nothing


def test_every_connection_goes_on_under_the_next_program(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    front = start({"target": targets.echo()}, nworkers=2)
    several = [clients(front) for _ in range(20)]
    assert all(echoes(each) for each in several)
    before, supervisor = front.pids(), front.process.pid

    answer = upgraded(front)

    assert all(echoes(each) for each in several)
    assert echoes(clients(front))
    assert answer["moved"] == len(several)
    assert (answer["before"], answer["after"]) == (__version__, __version__)
    assert 0 < answer["longest_stall"] <= answer["seconds"]
    after = front.pids()
    assert after.pop("supervisor") == before.pop("supervisor") == supervisor
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert front.wait("upgrade")["outcome"] == "ok"
    status = front.status()
    assert status["totals"]["relayed"] == len(several) + 1
    homes = {each["labels"]["transport"]: each["value"] for each in status["gauges"]
             if each["name"] == "sessions" and each["value"]}  # fmt: skip
    assert homes.keys() == ({"kernel"} if IN_KERNEL else {"user"})


def test_sigusr2_upgrades_too(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    front = start({"target": targets.echo()})
    client = clients(front)
    assert echoes(client)

    front.signal(signal.SIGUSR2)

    assert front.wait("upgrade")["connections_moved"] == "1"
    assert echoes(client)


def test_the_command_tells_what_it_did(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    front = start({"target": targets.echo()})
    client = clients(front)
    assert echoes(client)

    done = upgrade(front)

    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(f"upgraded from {__version__} to {__version__} in ")
    assert first.endswith(": 1 connection moved")
    assert second.startswith("the longest stood still for ")
    assert echoes(client)


def test_upgrades_follow_one_another_and_nothing_piles_up(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    front = start({"target": targets.echo()}, nworkers=2)
    client = clients(front)
    upgraded(front)
    before, names = descriptors(front.process.pid), front.pids().keys()

    for _ in range(3):
        assert echoes(client)
        upgraded(front)

    assert echoes(client)
    assert descriptors(front.process.pid) == before
    assert front.pids().keys() == names


def test_a_transfer_that_an_upgrade_falls_into_arrives_unharmed(
    start: Start, targets: Targets, certificates: Certificates
) -> None:
    """Both directions are busy all the time, and one upgrade comes after the other."""
    data = random_bytes(sized(32 * MEGABYTE, 16))
    front = start({"target": targets.echo()}, nworkers=2)
    hashes: list[str] = []
    over = threading.Event()
    with memory_client(front.port(), certificates.ca) as client:

        def exchange() -> None:
            while not over.is_set():
                hashes.append(client.exchange(data, len(data)))

        exchanging = threading.Thread(target=exchange, daemon=True)
        exchanging.start()
        moved = [upgraded(front)["moved"] for _ in range(1 if IN_GUEST else 3)]
        over.set()
        exchanging.join(TIMEOUT)

    assert set(moved) == {1}
    assert hashes
    assert set(hashes) == {sha256(data)}


def test_what_waits_for_a_client_that_does_not_read_moves_with_it(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    data = random_bytes(sized(16 * MEGABYTE, 4))
    front = start({"target": targets.run(lambda connection: connection.sendall(data)).target})
    client = clients(front)
    wait_for(lambda: front.status()["totals"]["bytes_out"] > MEGABYTE, "the target to be read")

    assert upgraded(front)["moved"] == 1
    assert upgraded(front)["moved"] == 1

    assert sha256(receive(client, len(data) + 1)) == sha256(data)


def test_a_half_closed_connection_stays_half_closed(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    """The target has ended; what the client sends still arrives, and then its end does."""
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        received.append(read_to_end(connection))

    target = targets.run(serve)
    front = start({"target": target.target})
    client = clients(front)
    assert receive(client, 3) == b"bye"
    assert client.recv(1) == b""

    upgraded(front)
    client.sendall(b"one more thing")
    with client.unwrap():
        assert target.served.acquire(timeout=TIMEOUT)

    assert received == [b"one more thing"]
    ended = front.wait("proxy", subevent="client_disconnect")
    assert ended["bytes_in"] == str(len(b"one more thing"))
    assert "error_msg" not in ended


def test_a_limit_of_connections_holds_for_both_programs_together(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket], context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo(), "max_connections": 5})
    several = [clients(front) for _ in range(5)]
    assert all(echoes(each) for each in several)
    over, let_in = threading.Event(), []

    def knock() -> None:
        while not over.is_set():
            try:
                connect(front.port(), context).close()
                let_in.append(1)
            except OSError:
                continue

    knocking = threading.Thread(target=knock)
    knocking.start()
    for _ in range(2):
        upgraded(front)
    over.set()
    knocking.join(20)

    assert not let_in
    assert all(echoes(each) for each in several)
    several.pop().close()
    wait_for(lambda: front.status()["totals"]["active"] == 4, "one to be gone")
    assert echoes(clients(front))


def test_a_client_in_its_handshake_is_let_in(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()})
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    done: list[subprocess.CompletedProcess[str]] = []
    with socket.create_connection(("127.0.0.1", front.port())) as sock:
        sock.settimeout(20)
        sock.sendall(hello[:100])
        wait_for(lambda: front.status()["handshaking"] == 1, "the hello to arrive")
        thread = threading.Thread(target=lambda: done.append(upgrade(front, "--json")))
        thread.start()
        front.wait("listening", 2)
        sock.sendall(hello[100:])
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        tls.write(b"hello")
        sock.sendall(outgoing.read())
        thread.join(30)

        data = b""
        while not data:
            incoming.write(sock.recv(65536))
            try:
                data = tls.read()
            except ssl.SSLWantReadError:
                continue

    assert data == b"hello"
    assert done[0].returncode == 0, done[0].stderr


def test_no_client_is_turned_away_while_it_happens(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()}, nworkers=2)
    port = front.port()
    over = threading.Event()
    served, failed = [0], []

    def come_and_go() -> None:
        while not over.is_set():
            try:
                with connect(port, context) as client:
                    assert echoes(client)
                served[0] += 1
            except (OSError, AssertionError) as error:
                failed.append(error)

    threads = [threading.Thread(target=come_and_go, daemon=True) for _ in range(3)]
    for each in threads:
        each.start()
    for _ in range(3):
        upgraded(front)
    over.set()
    for each in threads:
        each.join(30)

    assert not failed
    assert served[0] > 10


def test_a_session_with_a_target_over_tls_moves_as_well(
    start: Start,
    targets: Targets,
    clients: Callable[..., ssl.SSLSocket],
    certificates: Certificates,
) -> None:
    context = server_context(certificates.chain, certificates.key)
    target = targets.run(over_tls(context))
    tls = {"trusted-certs": [str(certificates.ca)], "server-name": "localhost"}
    front = start({"targets": [{"address": target.target, "tls": tls}], "target": None})
    client = clients(front)
    assert echoes(client)

    upgraded(front)

    assert echoes(client, random_bytes(MEGABYTE // 4))


def test_a_crowd_under_load_loses_nothing() -> None:
    """The measurement of `bench.upgrades`, with less of everything."""
    small = ["--connections", "400", "--busy", "20", "--upgrades", "2", "--stress", "0"]

    done = subprocess.run(
        [sys.executable, "-m", "bench.upgrades", *small],
        capture_output=True, text=True, check=False, timeout=120, cwd=REPOSITORY,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    crowd = json.loads(done.stdout)["crowd"]
    assert crowd["moved"] == [400, 400]
    assert crowd["connections that came and went"] > 0


# To another version


def test_an_upgrade_goes_to_the_version_of_another_interpreter_and_back(
    start: Start,
    targets: Targets,
    clients: Callable[..., ssl.SSLSocket],
    another: Installation,
    tmp_path: Path,
) -> None:
    pidfile = tmp_path / "pid"
    front = start({"target": targets.echo()}, pidfile=str(pidfile))
    client = clients(front)
    assert echoes(client)

    there = upgraded(front, "--python", str(another.python))
    assert echoes(client)
    assert front.status()["version"] == another.version
    assert pidfile.read_text() == f"{front.process.pid}\n"
    back = upgraded(front, "--python", sys.executable)

    assert echoes(client)
    assert (there["before"], there["after"]) == (__version__, another.version)
    assert (back["before"], back["after"]) == (another.version, __version__)
    assert pidfile.read_text() == f"{front.process.pid}\n"


def test_the_next_format_reads_this_one_and_is_not_read_by_it(
    start: Start,
    targets: Targets,
    clients: Callable[..., ssl.SSLSocket],
    tmp_path: Path,
) -> None:
    """A version that writes the next format of a hand-over: there is a way there, and none back."""
    following = Installation(tmp_path / "venv", "99.0")
    following.change("handover/message.py", r"^FORMAT: Final = 3", "FORMAT: Final = 4")
    following.change("handover/message.py", r"^READS: Final = .*", "READS: Final = (3, FORMAT)")
    following.change(
        "handover/message.py",
        r"^    detached: float$",
        '    detached: float\n    news: str = "none"',
    )
    front = start({"target": targets.echo()})
    client = clients(front)
    assert echoes(client)

    assert upgraded(front, "--python", str(following.python))["moved"] == 1
    before = front.pids()
    back = upgrade(front, "--python", sys.executable)

    assert back.returncode == 1
    assert "hands over in format 4, and this one reads 3" in back.stderr
    assert front.pids() == before
    assert echoes(client)
    assert front.status()["version"] == "99.0"


def test_a_reload_upgrades_when_the_version_on_the_disk_has_changed(
    start: Start,
    targets: Targets,
    clients: Callable[..., ssl.SSLSocket],
    installed: Installation,
) -> None:
    front = start({"target": targets.echo()}, python=installed.python)
    client = clients(front)
    assert echoes(client)

    installed.become("1.1")
    done = front.reload()

    assert done.returncode == 0, done.stderr
    assert front.status()["version"] == "1.1"
    assert echoes(client)
    assert front.wait("upgrade")["outcome"] == "ok"


# When it cannot be done


def break_an_import(version: Installation) -> None:
    version.change("relay/pump.py", r"^import socket$", "import sockets")


def break_the_relays(version: Installation) -> None:
    version.change("relay/relay.py", r"^        self\.loop = loop$", "        self.loop = pool")


def break_the_record_layer(version: Installation) -> None:
    version.change(
        "tls/writer.py",
        r"^            self\.sequence \+= 1\n            position = end",
        "            self.sequence += 2\n            position = end",
    )


def need_another_configuration(version: Installation) -> None:
    version.change("config/dialects.py", r'^    "nworkers": integer', '    "workers": integer')


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (break_an_import, 1, "No module named 'sockets'"),
        (break_the_relays, 1, "its proof failed"),
        (break_the_record_layer, 1, "its proof failed"),
        (need_another_configuration, 2, "nworkers: unknown key"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_a_version_that_cannot_prove_itself_changes_nothing(
    start: Start,
    targets: Targets,
    clients: Callable[..., ssl.SSLSocket],
    tmp_path: Path,
    fault: Callable[[Installation], None],
    code: int,
    said: str,
) -> None:
    broken = Installation(tmp_path / "venv", "66.6")
    fault(broken)
    front = start({"target": targets.echo()})
    client = clients(front)
    assert echoes(client)
    before, open_before = front.pids(), descriptors(front.process.pid)

    done = upgrade(front, "--python", str(broken.python))

    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert front.pids() == before
    assert echoes(client)
    assert echoes(clients(front))
    assert front.wait("upgrade")["outcome"] == "refused"
    assert descriptors(front.process.pid) == open_before
    assert upgraded(front)["moved"] >= 1  # a good one still works


def never_come_up(version: Installation) -> None:
    """Pass every proof, and fail with what was inherited."""
    version.change(
        "process/relays.py",
        r'^        """Fork all of them; each waits for its plan."""$',
        '        if not self._taking:\n            raise HandfastError("relays are on strike")',
    )
    version.change(
        "process/relays.py",
        r"^from handfast.handover import channel$",
        "from handfast.errors import HandfastError\nfrom handfast.handover import channel",
    )


def test_a_version_that_does_not_come_up_gives_its_place_back(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket], tmp_path: Path
) -> None:
    broken = Installation(tmp_path / "venv", "66.6")
    never_come_up(broken)
    front = start({"target": targets.echo()}, nworkers=2)
    several = [clients(front) for _ in range(5)]
    assert all(echoes(each) for each in several)

    done = upgrade(front, "--python", str(broken.python))

    assert done.returncode == 1
    assert "relays are on strike" in done.stderr
    assert f"{__version__} serves again" in done.stderr
    assert all(echoes(each) for each in several)
    assert echoes(clients(front))
    status = front.status()
    assert status["version"] == __version__
    assert status["pid"] == front.process.pid
    assert front.wait("upgrade", outcome="returned")["connections_moved"] == "5"


def test_where_there_is_nothing_to_go_back_to_the_old_processes_serve_on(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket], installed: Installation
) -> None:
    """A version that was installed over the one that runs, and does not come up."""
    front = start({"target": targets.echo()}, python=installed.python)
    client = clients(front)
    assert echoes(client)

    installed.become("1.1")
    never_come_up(installed)
    done = upgrade(front)

    assert done.returncode == 1
    assert "relays are on strike" in done.stderr
    assert echoes(client)
    assert echoes(clients(front))
    installed.become("1.2")
    assert upgraded(front)["moved"] == 2
    assert echoes(client)
    assert front.status()["version"] == "1.2"


def test_an_interpreter_that_is_not_there_is_wrong_usage(start: Start, targets: Targets) -> None:
    front = start({"target": targets.echo()})

    done = upgrade(front, "--python", "/nowhere/python")

    assert done.returncode == 2
    assert "/nowhere/python is no program that can be run" in done.stderr


def test_stop_calls_an_upgrade_off(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    front = start({"target": targets.echo()}, drain_timeout="1s")
    done: list[subprocess.CompletedProcess[str]] = []
    asking = threading.Thread(target=lambda: done.append(upgrade(front)))
    asking.start()
    front.wait("worker", worker_state="spawned", worker_id="proof")

    front.stop()
    asking.join(20)

    assert done[0].returncode == 1
    assert "handfast is stopping" in done[0].stderr


def test_who_asks_for_another_program_meanwhile_is_told_to_wait(
    start: Start, targets: Targets, another: Installation
) -> None:
    front = start({"target": targets.echo()})
    front.signal(signal.SIGUSR2)
    front.wait("worker", worker_state="spawned", worker_id="proof")

    done = upgrade(front, "--python", str(another.python))

    assert done.returncode == 1
    assert "an upgrade is under way" in done.stderr
    assert front.wait("upgrade")["outcome"] == "ok"


def test_an_address_that_is_taken_is_found_before_anything_changes(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    front = start({"target": targets.echo()})
    client = clients(front)
    assert echoes(client)
    before = front.pids()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        front.settings["listeners"].append({**front.listener, "listen": where})
        front.settings["nworkers"] = 2
        front.save()

        done = upgrade(front)

    assert done.returncode == 1
    assert f"cannot listen on {where}" in done.stderr
    assert front.pids() == before
    assert echoes(client)
    assert front.reload().returncode == 0
    assert echoes(client)


def test_a_mistake_that_is_saved_while_the_next_program_is_proved_is_found(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    front = start({"target": targets.echo()})
    client = clients(front)
    assert echoes(client)
    front.signal(signal.SIGUSR2)
    front.wait("worker", worker_state="spawned", worker_id="proof")

    front.config.write_text("nworkers: [")

    front.wait("upgrade")
    assert echoes(client)
    assert front.process.poll() is None
    assert echoes(clients(front))


def test_a_change_that_is_saved_while_the_next_program_is_proved_is_proved_too(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    front = start({"target": targets.echo()})
    client = clients(front)
    assert echoes(client)
    front.signal(signal.SIGUSR2)
    front.wait("worker", worker_state="spawned", worker_id="proof")

    front.settings["nworkers"] = 2
    front.save()

    assert front.wait("upgrade")["outcome"] == "ok"
    assert len(front.events("worker", worker_state="spawned", worker_id="proof")) <= 2
    assert len(front.pids("relay-")) == 2
    assert echoes(client)


def test_a_reload_while_connections_move_takes_effect_at_once(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket], context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()})
    client = clients(front)
    assert echoes(client)
    old = front.pids()["relay-1"]
    os.kill(old, signal.SIGSTOP)
    front.signal(signal.SIGUSR2)
    front.wait("listening", 2)

    front.listener["target"] = targets.says("another")
    done = front.reload()

    assert done.returncode == 0, done.stderr
    with connect(front.port(), context) as later:
        assert read_to_end(later) == b"another"
    os.kill(old, signal.SIGCONT)
    assert front.wait("upgrade")["connections_moved"] == "1"
    assert echoes(client)


def test_a_daemon_that_was_started_with_a_relative_path_can_be_upgraded(
    targets: Targets, certificates: Certificates, tmp_path: Path, context: ssl.SSLContext
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (tmp_path / "h.yaml").write_text(
        f"nworkers: 1\ncontrol: {tmp_path}/control\nlogfile: {tmp_path}/log\n"
        f"listeners:\n  - listen: 127.0.0.1:{port}\n    target: {targets.echo()}\n"
        f"    certificates: [{{chain: {certificates.chain}, key: {certificates.key}}}]\n"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "handfast", *words, "-c", "h.yaml"],
            capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
        )  # fmt: skip

    started = run("serve", "--daemon")
    assert started.returncode == 0, started.stderr
    try:
        with connect(port, context) as client:
            assert echoes(client)
            done = run("upgrade")
            assert done.returncode == 0, done.stderr
            assert echoes(client)
    finally:
        assert run("stop").returncode == 0


@pytest.mark.parametrize("name", ["HANDFAST_INHERITANCE", "HANDFAST_PROOF"])
@pytest.mark.parametrize("value", ["1", "999", "99999999999999999999", "0 /tmp", "x"])
def test_a_forged_environment_gives_a_clear_error_or_nothing(
    tmp_path: Path, name: str, value: str
) -> None:
    (tmp_path / "h.yaml").write_text("listeners: []\n")

    done = subprocess.run(
        [sys.executable, "-P", "-m", "handfast", "serve", "-c", str(tmp_path / "h.yaml")],
        capture_output=True, text=True, check=False, timeout=30, env={**os.environ, name: value},
    )  # fmt: skip

    assert done.returncode in {1, 2}
    assert done.stderr.startswith("handfast: ")
    assert "Traceback" not in done.stderr


# What a reload changes by the same means


@pytest.mark.skipif(IN_KERNEL, reason="it says nothing of where sessions are")
def test_the_number_of_relays_grows_and_shrinks_under_live_connections(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    front = start({"target": targets.echo()}, nworkers=1)
    several = [clients(front) for _ in range(12)]

    for count in (4, 2, 3, 1):
        assert all(echoes(each) for each in several)
        front.settings["nworkers"] = count
        done = front.reload()
        assert done.returncode == 0, done.stderr
        assert len(front.pids("relay-")) == len(front.pids("acceptor-")) == count

    assert all(echoes(each) for each in several)
    assert front.status()["totals"]["active"] == len(several)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_processes_become_another_user_under_live_connections(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    front = start({"target": targets.echo()}, user="nobody")
    client = clients(front)
    assert echoes(client)
    front.settings["user"] = "daemon"

    done = front.reload()

    assert done.returncode == 0, done.stderr
    assert echoes(client)
    owners = {Path(f"/proc/{pid}").stat().st_uid for pid in front.pids("relay-").values()}
    assert owners <= {pwd.getpwnam("daemon").pw_uid, 0}


def test_control_pidfile_metrics_and_log_go_elsewhere_and_leave_nothing(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket], tmp_path: Path
) -> None:
    front = start(
        {"target": targets.echo()},
        pidfile=str(tmp_path / "pid"),
        metrics=f"unix:{tmp_path}/metrics",
    )
    client = clients(front)
    assert echoes(client)
    before = descriptors(front.process.pid)
    for key in ("control", "pidfile", "metrics"):
        front.settings[key] += "-2"
    front.save()

    front.signal(signal.SIGHUP)  # the command would look for the control socket in its new place
    front.wait("upgrade", outcome="ok")

    assert front.status()["state"] == "serving"
    assert echoes(client)
    for name in ("control.sock", "pid", "metrics"):
        assert not (tmp_path / name).exists()
        assert (tmp_path / f"{name}-2").exists()
    wait_for(lambda: descriptors(front.process.pid) == before, "all else to be closed")


@pytest.mark.parametrize("key", ["pidfile", "logfile"])
def test_a_place_that_cannot_be_written_to_refuses_the_reload(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket], key: str
) -> None:
    front = start({"target": targets.echo()})
    client = clients(front)
    assert echoes(client)
    before = front.pids()
    front.settings[key] = "/nowhere/at/all"

    done = front.reload()

    assert done.returncode == 2
    assert "/nowhere/at/all: " in done.stderr
    assert front.pids() == before
    assert echoes(client)


# Evening out


def loads(front: Front) -> list[int]:
    """How many connections each relay has, fewest first."""
    processes = front.status()["processes"]
    return sorted(
        each["counters"]["active"] for each in processes if each["name"].startswith("relay-")
    )


def test_rebalance_evens_out_the_relays(
    start: Start, targets: Targets, clients: Callable[..., ssl.SSLSocket]
) -> None:
    front = start({"target": targets.echo()}, nworkers=3)
    several = [clients(front) for _ in range(12)]
    assert all(echoes(each) for each in several)
    os.kill(front.pids()["relay-2"], signal.SIGKILL)
    front.wait("worker", 2, worker_state="spawned", worker_id="relay-2")
    wait_for(lambda: len(loads(front)) == 3, "the relay to be back")
    left = sum(loads(front))
    assert loads(front)[0] == 0
    living = [each for each in several if answers(each)]

    done = front.command("rebalance", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["moved"] >= left // 3
    assert max(loads(front)) - min(loads(front)) <= 1
    assert all(echoes(each) for each in living)
    again = front.command("rebalance")
    assert again.stdout == "0 connections moved\n"


def answers(client: ssl.SSLSocket) -> bool:
    try:
        return echoes(client)
    except OSError:
        return False
