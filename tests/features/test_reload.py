"""Change without harm: what a reload takes up, and what it refuses."""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from features.world import World, auth_of, greeting, seen
from harness.clients import connect, echoes, read_to_end
from harness.homes import TIMEOUT
from harness.instance import wait_for
from harness.pki import issue, revocation_list
from harness.processes import Watched
from harness.streams import MemoryClient

if TYPE_CHECKING:
    from conftest import Certificates
    from features.conftest import Shown, Start, Targets
    from harness.front import Front

Change = Callable[["Front", World], None]


def test_a_new_certificate_is_shown_to_new_clients_while_old_ones_stay(
    start: Start, targets: Targets, certificates: Certificates, shown: Shown,
    context: ssl.SSLContext,
) -> None:  # fmt: skip
    front = start({"target": targets.echo()})
    fresh = issue("localhost", certificates.intermediate)

    with connect(front.port(), context) as client:
        front.reloaded(certificates=[shown(fresh)])
        assert seen(front, context) == fresh.certificate.public_bytes(Encoding.DER)
        assert echoes(client)


def test_files_that_were_replaced_in_place_are_read_again(
    start: Start, targets: Targets, certificates: Certificates, shown: Shown,
    context: ssl.SSLContext,
) -> None:  # fmt: skip
    files = shown(certificates.server)
    front = start({"target": targets.echo(), "certificates": [files]})
    fresh = issue("localhost", certificates.intermediate)

    Path(files["chain"]).write_bytes(fresh.chain_pem())
    Path(files["key"]).write_bytes(fresh.key_pem())
    assert front.command("reload").returncode == 0

    assert seen(front, context) == fresh.certificate.public_bytes(Encoding.DER)


def test_new_clients_go_to_the_new_target_while_old_ones_stay_at_theirs(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()})

    with connect(front.port(), context) as client:
        front.reloaded(target=targets.says("new"))
        assert greeting(front, context) == "new"
        assert echoes(client)


def test_a_listener_that_is_added_serves(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.says("first")})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    added = {**front.listener, "listen": f"127.0.0.1:{port}", "target": targets.says("second")}
    front.settings["listeners"].append(added)
    done = front.reload()

    assert done.returncode == 0, done.stderr
    with connect(port, context) as client:
        assert read_to_end(client) == b"second"
    assert greeting(front, context) == "first"


def test_a_listener_that_is_removed_serves_no_more_and_its_connections_end_in_order(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    target = targets.echo()
    front = start({"target": target}, {"target": target, "listen": "127.0.0.2:0"})
    port = front.port(1)

    with connect(front.port(), context) as kept:
        with socket.create_connection(("127.0.0.2", port), TIMEOUT) as raw:
            client = MemoryClient(raw, context)
            client.handshake()
            client.write(b"hello")
            client.flush()
            assert client.read_exactly(5) == b"hello"
            del front.settings["listeners"][1]
            assert front.reload().returncode == 0
            assert client.read() == b""  # close_notify
        assert echoes(kept)

    # The acceptors of the generation before close it in their own time.
    wait_for(lambda: refuses(("127.0.0.2", port)), "the listener to be gone")
    ended = front.wait("proxy", subevent="client_disconnect", listen_ip="127.0.0.2")
    assert ended["error_msg"] == "its listener is no longer configured"


def refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) != 0


def test_a_unix_socket_comes_and_goes_with_its_listener(
    start: Start, targets: Targets, context: ssl.SSLContext, tmp_path: Path
) -> None:
    front = start({"target": targets.says("hello")})
    path = tmp_path / "front.sock"
    front.settings["listeners"].append({**front.listener, "listen": f"unix:{path}"})
    assert front.reload().returncode == 0

    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(TIMEOUT)
        raw.connect(str(path))
        with context.wrap_socket(raw, server_hostname="localhost") as client:
            assert read_to_end(client) == b"hello"

    del front.settings["listeners"][1]
    assert front.reload().returncode == 0
    assert not path.exists()


def test_the_log_level_changes_in_every_process(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.says("hello")})
    front.settings["loglevel"] = "WARN"
    assert front.reload().returncode == 0
    assert greeting(front, context) == "hello"

    front.settings["loglevel"] = "INFO"
    assert front.reload().returncode == 0

    assert greeting(front, context) == "hello"
    front.wait("auth", outcome="granted")
    front.wait("proxy", subevent="client_disconnect")
    assert len(front.events("auth")) == 1
    assert len(front.events("proxy", subevent="client_connect")) == 1


def test_a_limit_changes(start: Start, targets: Targets, context: ssl.SSLContext) -> None:
    front = start({"target": targets.echo()}, limits={"connections": 1})
    with connect(front.port(), context) as first:
        assert echoes(first)
        front.settings["limits"] = {"connections": 2}
        assert front.reload().returncode == 0
        with connect(front.port(), context) as second:
            assert echoes(second)


def test_a_timeout_changes_for_live_connections_too(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()})
    with connect(front.port(), context) as client:
        assert echoes(client)
        front.settings["idle-timeout"] = "300ms"
        assert front.reload().returncode == 0
        assert client.recv(1) == b""

    assert "idle" in front.wait("proxy", subevent="client_disconnect")["error_msg"]


def test_a_reload_is_told_with_what_it_loaded(start: Start, targets: Targets) -> None:
    front = start({"target": targets.echo()})
    certificates = len(front.events("cert_loaded"))

    front.reloaded()

    told = front.wait("reload")
    assert (told["outcome"], told["generation"], told["level"]) == ("ok", "2", "INFO")
    assert float(told["duration_ms"]) > 0
    assert len(front.events("config_loaded")) == 2
    assert len(front.events("cert_loaded")) == 2 * certificates


def test_acceptors_are_replaced_and_relays_stay(start: Start, targets: Targets) -> None:
    front = start({"target": targets.echo()}, nworkers=2)
    before = front.pids()
    old = Watched(before["template"], before["acceptor-1"], before["acceptor-2"])

    front.reloaded()

    old.wait()
    after = front.pids()
    for name in ("supervisor", "relay-1", "relay-2"):
        assert after[name] == before[name]
    assert not {after["acceptor-1"], after["acceptor-2"]} & {*before.values()}


def test_a_handshake_in_progress_is_finished_by_the_old_generation(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo()})
    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        client = MemoryClient(raw, context)
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        client.flush()
        answer = raw.recv(1, socket.MSG_PEEK)

        front.reloaded()

        client.handshake()
        client.write(b"hello")
        client.flush()
        assert client.read_exactly(5) == b"hello"
        assert answer


def test_sighup_reloads(start: Start, targets: Targets, context: ssl.SSLContext) -> None:
    front = start({"target": targets.says("old")})
    front.listener["target"] = targets.says("new")
    front.save()

    front.signal(signal.SIGHUP)

    assert front.wait("reload")["outcome"] == "ok"
    assert greeting(front, context) == "new"


def test_sighup_with_a_mistake_is_told_in_the_log(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.says("old")})
    front.listener["target"] = "nonsense"
    front.save()

    front.signal(signal.SIGHUP)

    told = front.wait("reload")
    assert (told["outcome"], told["level"]) == ("refused", "ERROR")
    assert "listeners[0].target" in told["error_msg"]
    assert greeting(front, context) == "old"


def bad_yaml(front: Front, world: World) -> None:
    front.config.write_text(front.config.read_text() + "listeners: [\n")


def unknown_key(front: Front, world: World) -> None:
    front.listener["certificats"] = []


def missing_key(front: Front, world: World) -> None:
    front.listener["certificates"][0]["key"] = f"{world.directory}/nowhere.pem"


def key_of_another(front: Front, world: World) -> None:
    file = world.file("other-key.pem", world.alice.key_pem())
    front.listener["certificates"][0]["key"] = file


def crl_of_a_stranger(front: Front, world: World) -> None:
    file = world.file("list.pem", revocation_list(issue("a stranger", ca=True)))
    front.listener["client-auth"] = auth_of(world, crls=[file])


def forged_crl(front: Front, world: World) -> None:
    other = issue("clients root", ca=True)
    file = world.file("list.pem", revocation_list(world.root, signer=other))
    front.listener["client-auth"] = auth_of(world, crls=[file])


def same_address_twice(front: Front, world: World) -> None:
    front.listener["listen"] = f"127.0.0.1:{front.port()}"
    front.settings["listeners"].append({**front.listener})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (bad_yaml, "line "),
        (unknown_key, "listeners[0].certificats"),
        (missing_key, "nowhere.pem: cannot be read: No such file or directory"),
        (key_of_another, "other-key.pem"),
        (crl_of_a_stranger, "the CRL of CN=a stranger is of no trusted certificate"),
        (forged_crl, "is signed by another key"),
        (same_address_twice, "listeners[1].listen"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_a_mistake_leaves_everything_as_it_was_and_is_told_to_who_asked(
    start: Start, targets: Targets, world: World, context: ssl.SSLContext, change: Change, said: str
) -> None:
    front = start({"target": targets.echo()})
    before = front.pids()
    with connect(front.port(), context) as client:
        assert echoes(client)
        change(front, world)
        if change is not bad_yaml:
            front.save()

        done = front.command("reload")

        assert done.returncode == 2
        assert said in done.stderr
        assert f"{front.config}: line " in done.stderr
        assert echoes(client)
        with connect(front.port(), context) as later:
            assert echoes(later)
    assert front.wait("reload")["outcome"] == "refused"
    assert front.pids() == before
    assert front.status()["reloads"]["failed"] == 1


def test_a_port_that_is_taken_refuses_the_reload_and_closes_nothing(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.says("old")})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        front.settings["listeners"].append({**front.listener, "listen": where})
        done = front.reload()

    assert done.returncode == 1
    assert f"cannot listen on {where}: Address already in use" in done.stderr
    assert greeting(front, context) == "old"


def test_after_a_mistake_was_mended_a_reload_works(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.says("old")})
    good = front.listener["target"]
    front.listener["target"] = "nonsense"
    assert front.reload().returncode == 2

    front.listener["target"] = good
    front.reloaded(target=targets.says("new"))

    assert greeting(front, context) == "new"
    assert front.status()["reloads"]["error"] == ""
