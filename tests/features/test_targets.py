"""Targets: TLS with them, which one is taken, and what happens when one is down."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from harness.backends import over_tls, server_context
from harness.clients import connect, echoes, read_to_end, receive
from harness.homes import TIMEOUT
from harness.instance import wait_for
from harness.pki import DAY, NOW, Identity, issue
from harness.streams import memory_client, random_bytes, sha256
from harness.target import target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Certificates
    from features.conftest import Start, Targets
    from harness.front import Front


@pytest.fixture
def root() -> Identity:
    """The CA of the targets, which clients do not know."""
    return issue("targets root", ca=True)


class Secured:
    """Targets with TLS. `ca` is the file of their CA."""

    def __init__(self, targets: Targets, root: Identity, directory: Path) -> None:
        self._targets = targets
        self._root = root
        self._directory = directory
        self._count = 0
        self.ca = directory / "targets-root.pem"
        self.ca.write_bytes(root.pem())

    def run(self, *names: x509.GeneralName, **more: Any) -> str:
        """Run one that echoes, with a certificate for these names; give its address."""
        self._count += 1
        identity = issue("a target", self._root, names=names, **more)
        files = identity.write(self._directory, f"target-{self._count}")
        return self._targets.run(over_tls(server_context(*files))).target

    def mapping(self, address: str, **tls: object) -> dict[str, Any]:
        """Give the mapping of a target that is verified by the CA file."""
        return {"address": address, "tls": {"trusted-certs": [str(self.ca)], **tls}}


@pytest.fixture
def secured(targets: Targets, root: Identity, tmp_path: Path) -> Secured:
    return Secured(targets, root, tmp_path)


BACK = x509.DNSName("back.example")
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


def refused(front: Front, context: ssl.SSLContext) -> dict[str, str]:
    """Connect to a front whose target is no good; give the event about the target."""
    with (
        connect(front.port(), context) as client,
        pytest.raises(ssl.SSLError, match=r"(?i)internal.error"),
    ):
        client.recv(1)
    event = front.wait("proxy", subevent="server_connect")
    assert event["error_msg"] == "no TLS session with the target"
    return event


def test_a_target_is_verified_by_its_ca_and_name(
    start: Start, secured: Secured, context: ssl.SSLContext
) -> None:
    target = secured.mapping(secured.run(BACK), **{"server-name": "back.example"})
    front = start({"targets": [target]})

    with connect(front.port(), context) as client:
        assert echoes(client, random_bytes(500_000))


def test_a_target_is_verified_by_its_ip_address(
    start: Start, secured: Secured, context: ssl.SSLContext
) -> None:
    front = start({"targets": [secured.mapping(secured.run(LOOPBACK))]})

    with connect(front.port(), context) as client:
        assert echoes(client)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_megabytes_go_both_ways_at_once_with_tls_on_both_sides(
    start: Start, targets: Targets, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    up, down = random_bytes(3_000_001), random_bytes(3_000_003)
    inside = server_context(certificates.chain, certificates.key)
    inside.maximum_version = version
    address = targets.run(over_tls_at_once(inside, up, down)).target
    tls = {"server-name": "localhost", "trusted-certs": [str(certificates.ca)]}
    front = start({"targets": [{"address": address, "tls": tls}]})

    with memory_client(front.port(), certificates.ca) as client:
        assert client.exchange(up, len(down)) == sha256(down)
        assert client.read_exactly(2) == b"ok"


def over_tls_at_once(
    context: ssl.SSLContext, up: bytes, down: bytes
) -> Callable[[socket.socket], None]:
    """Give what a target serves with that sends while it reads, and then says what it thinks."""

    def run(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            seen = bytearray()
            left = memoryview(down)
            while left or len(seen) < len(up):
                if left:
                    left = left[tls.send(left[:16384]) :]
                if len(seen) < len(up):
                    seen += tls.recv(16384)
            tls.sendall(b"ok" if seen == up else b"no")
            tls.recv(1)

    return run


def test_the_end_of_the_client_is_the_end_for_a_target_with_tls_which_still_answers(
    start: Start, targets: Targets, certificates: Certificates
) -> None:
    inside = server_context(certificates.chain, certificates.key)

    def serve(connection: socket.socket) -> None:
        with inside.wrap_socket(connection, server_side=True) as tls:
            seen = read_to_end(tls)
            tls.sendall(b"got " + seen)
            tls.unwrap()

    tls = {"server-name": "localhost", "trusted-certs": [str(certificates.ca)]}
    front = start({"targets": [{"address": targets.run(serve).target, "tls": tls}]})

    with memory_client(front.port(), certificates.ca) as client:
        client.write(b"all of it")
        client.close_write()
        assert client.read_exactly(13) == b"got all of it"
        assert client.read() == b""


def test_a_target_is_verified_by_what_the_system_trusts(
    start: Start, targets: Targets, certificates: Certificates, context: ssl.SSLContext
) -> None:
    address = targets.run(over_tls(server_context(certificates.chain, certificates.key))).target
    front = start(
        {"targets": [{"address": address, "tls": True}]},
        wrapper=("env", f"SSL_CERT_FILE={certificates.ca}"),
    )

    with connect(front.port(), context) as client:
        assert echoes(client)


def test_a_target_is_asked_for_its_name(
    start: Start, targets: Targets, certificates: Certificates, context: ssl.SSLContext
) -> None:
    asked: list[str | None] = []
    inside = server_context(certificates.chain, certificates.key)
    inside.sni_callback = lambda _, name, __: asked.append(name)
    address = targets.run(over_tls(inside)).target
    tls = {"server-name": "localhost", "trusted-certs": [str(certificates.ca)]}
    front = start({"targets": [{"address": address, "tls": tls}]})

    with connect(front.port(), context) as client:
        assert echoes(client)

    assert asked == ["localhost"]


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        ([x509.DNSName("other.example")], "back.example"),
        ([BACK], "127.0.0.1"),
        ([x509.DNSName("127.0.0.1")], "127.0.0.1"),  # a name is no address
        ([x509.DNSName("*.example")], "a.back.example"),
    ],
)
def test_a_target_with_a_certificate_for_another_name_gets_nothing(
    start: Start,
    secured: Secured,
    context: ssl.SSLContext,
    names: list[x509.GeneralName],
    asked: str,
) -> None:
    target = secured.mapping(secured.run(*names), **{"server-name": asked})
    front = start({"targets": [target]})

    assert asked in refused(front, context)["error_desc"]


def test_a_target_of_another_ca_gets_nothing(
    start: Start, secured: Secured, certificates: Certificates, context: ssl.SSLContext
) -> None:
    tls = {"server-name": "back.example", "trusted-certs": [str(certificates.ca)]}
    front = start({"targets": [secured.mapping(secured.run(BACK), **tls)]})

    assert "not trusted" in refused(front, context)["error_desc"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"not_before": NOW - 9 * DAY, "not_after": NOW - DAY}, "expired"),
        ({"not_before": NOW + DAY}, "not yet valid"),
        ({"client": True}, "not for servers"),
    ],
)
def test_a_target_whose_certificate_is_no_good_gets_nothing(
    start: Start,
    secured: Secured,
    context: ssl.SSLContext,
    more: dict[str, datetime.datetime],
    said: str,
) -> None:
    target = secured.mapping(secured.run(BACK, **more), **{"server-name": "back.example"})
    front = start({"targets": [target]})

    assert said in refused(front, context)["error_desc"]


def test_a_target_without_tls_where_tls_is_wanted_gets_nothing(
    start: Start, targets: Targets, secured: Secured, context: ssl.SSLContext
) -> None:
    front = start({"targets": [secured.mapping(targets.says("hello"))]})

    refused(front, context)


def test_a_target_that_ends_without_close_notify_is_no_orderly_end(
    start: Start, targets: Targets, certificates: Certificates, context: ssl.SSLContext
) -> None:
    inside = server_context(certificates.chain, certificates.key)

    def cut(connection: socket.socket) -> None:
        with inside.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(b"half of it")

    tls = {"server-name": "localhost", "trusted-certs": [str(certificates.ca)]}
    front = start({"targets": [{"address": targets.run(cut).target, "tls": tls}]})

    with connect(front.port(), context) as client:
        assert receive(client, 10) == b"half of it"
        with pytest.raises(ssl.SSLError, match=r"(?i)internal.error"):
            client.recv(1)


def greeting(front: Front, context: ssl.SSLContext) -> str:
    """Connect, and give what the target says."""
    with connect(front.port(), context) as client:
        return read_to_end(client).decode()


def test_targets_take_turns(start: Start, targets: Targets, context: ssl.SSLContext) -> None:
    front = start({"targets": [targets.says("a"), targets.says("b"), targets.says("c")]})

    assert "".join(greeting(front, context) for _ in range(7)) == "abcabca"


class Held:
    """Clients that stay, at targets that say who they are and stay as well."""

    def __init__(self, targets: Targets, context: ssl.SSLContext, stack: ExitStack) -> None:
        self._targets = targets
        self._context = context
        self._stack = stack

    def target(self, name: str) -> str:
        def serve(connection: socket.socket) -> None:
            connection.sendall(name.encode())
            connection.recv(1)

        return self._targets.run(serve).target

    def connect(self, front: Front) -> tuple[ssl.SSLSocket, str]:
        client = self._stack.enter_context(connect(front.port(), self._context))
        return client, client.recv(100).decode()


@pytest.fixture
def held(targets: Targets, context: ssl.SSLContext) -> Iterator[Held]:
    with ExitStack() as stack:
        yield Held(targets, context, stack)


def test_the_target_with_the_least_connections_is_taken(start: Start, held: Held) -> None:
    front = start({"targets": [held.target("a"), held.target("b")], "balance": "least-connections"})
    clients = [held.connect(front) for _ in range(3)]
    assert [said for _, said in clients] == ["a", "b", "a"]

    clients[1][0].close()
    front.wait("proxy", subevent="server_disconnect")

    assert [held.connect(front)[1] for _ in range(3)] == ["b", "b", "a"]


def test_a_target_that_is_full_is_passed_over_until_there_is_room(start: Start, held: Held) -> None:
    full = {"address": held.target("a"), "max-connections": 1}
    front = start({"targets": [full, held.target("b")]})
    first, said = held.connect(front)
    assert said == "a"

    assert [held.connect(front)[1] for _ in range(3)] == ["b", "b", "b"]

    first.close()
    front.wait("proxy", subevent="server_disconnect")
    assert "a" in [held.connect(front)[1] for _ in range(2)]


def test_a_client_is_refused_when_every_target_is_full(
    start: Start, held: Held, context: ssl.SSLContext
) -> None:
    front = start({"targets": [{"address": held.target("a"), "max-connections": 1}]})
    held.connect(front)

    with (
        connect(front.port(), context) as client,
        pytest.raises(ssl.SSLError, match=r"(?i)internal.error"),
    ):
        client.recv(1)

    told = front.wait("proxy", 2, subevent="server_connect")
    assert told["error_msg"] == "every target is at its limit of connections"


@pytest.fixture
def down() -> Iterator[socket.socket]:
    """A target that is down: bound, so that nobody else gets the port, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.settimeout(TIMEOUT)
        yield bound


def test_clients_of_a_target_that_is_down_come_to_another(
    start: Start, targets: Targets, down: socket.socket, context: ssl.SSLContext
) -> None:
    front = start({"targets": [target_of(down), targets.says("b")]})

    assert [greeting(front, context) for _ in range(4)] == ["b"] * 4

    told = front.wait("target", state="down")
    assert told["address"] == target_of(down).removeprefix("tcp://")
    assert told["level"] == "WARN"
    assert len(front.events("target")) == 1


def test_a_target_that_is_up_again_is_used_again(
    start: Start, targets: Targets, down: socket.socket, context: ssl.SSLContext
) -> None:
    front = start({"targets": [target_of(down), targets.says("b")]})
    assert greeting(front, context) == "b"
    front.wait("target", state="down")

    down.listen()

    def is_up() -> bool:
        with connect(front.port(), context):
            return bool(front.events("target", state="up"))

    wait_for(is_up, "the target is found to be up")
    assert front.wait("target", state="up")["address"] == target_of(down).removeprefix("tcp://")


def test_a_target_that_is_alone_is_tried_though_it_was_down(
    start: Start, down: socket.socket, context: ssl.SSLContext
) -> None:
    front = start({"target": target_of(down)})
    with pytest.raises(ssl.SSLError), connect(front.port(), context) as client:
        client.recv(1)

    down.listen()

    with connect(front.port(), context) as client, down.accept()[0] as connection:
        connection.sendall(b"back")
        assert receive(client, 4) == b"back"


def test_a_target_that_does_not_prove_itself_is_passed_over(
    start: Start, targets: Targets, secured: Secured, context: ssl.SSLContext
) -> None:
    wrong = secured.mapping(secured.run(BACK), **{"server-name": "other.example"})
    front = start({"targets": [wrong, targets.says("b")]})

    assert greeting(front, context) == "b"

    assert front.wait("target", state="down")["error_msg"] == "no TLS session with the target"


def test_all_targets_that_were_tried_are_given_up_within_the_connect_timeout(
    start: Start, context: ssl.SSLContext
) -> None:
    with ExitStack() as stack:
        full = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
                for _ in range(2)]  # fmt: skip
        for each in full:  # the one place there is
            stack.enter_context(socket.create_connection(each.getsockname(), TIMEOUT))
        front = start({"targets": [target_of(each) for each in full]}, connect_timeout="600ms")

        with pytest.raises(ssl.SSLError), connect(front.port(), context) as client:
            client.recv(1)

    told = front.wait("proxy", subevent="client_disconnect")
    assert 600 <= float(told["duration_ms"]) < 2500


def test_a_reload_keeps_what_is_known_of_a_target(
    start: Start, targets: Targets, down: socket.socket, context: ssl.SSLContext
) -> None:
    where = [target_of(down), targets.says("b")]
    front = start({"targets": where})
    assert greeting(front, context) == "b"

    front.reloaded(targets=[*where, targets.says("c")])

    assert {greeting(front, context) for _ in range(4)} == {"b", "c"}
    assert len(front.events("target", state="down")) == 1


def test_a_unix_target_outside_the_chroot_is_reached(
    start: Start, targets: Targets, public_path: Path, context: ssl.SSLContext
) -> None:
    path = f"{public_path}/target"
    targets.run(family=socket.AF_UNIX, address=path)
    (public_path / "target").chmod(0o666)
    front = start({"target": f"unix:{path}"})

    with connect(front.port(), context) as client:
        assert echoes(client, random_bytes(300_000))

    assert front.wait("proxy", subevent="server_connect")["server_ip"] == f"unix:{path}"
