"""Sessions that applications get in the kernel: in Python, and in a few lines of C."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from handfast.app import Connection
from handfast.relay.settling import SETTLE_SECONDS
from handfast.tls.session import Session
from harness.clients import connect, receive, trusting
from harness.homes import TIMEOUT
from harness.instance import wait_for
from harness.streams import memory_client, random_bytes, sha256
from unit.relay.applications import Application, plan_for, received
from unit.relay.relaying import Relaying, TlsClient, relaying
from unit.tls.sessions import AES128, AES128_12, DATA, Peering, either_version, sessions

if TYPE_CHECKING:
    from conftest import Certificates
    from features.conftest import Start
    from handfast.tls.keys import Suite
    from handfast.transport.kernel import Support

SOURCE = Path(__file__).parents[2] / "examples" / "application" / "receive.c"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Application]:
    made = Application(tmp_path / "app.sock")
    with made.sock:
        yield made


@pytest.fixture
def front(app: Application, support: Support) -> Iterator[Relaying]:
    with relaying(replace(plan_for(app, kernel_after=0), kernel=support)) as running:
        yield running


def taken(front: Relaying, app: Application) -> tuple[Connection, str]:
    """Take a session as an application does; give also where the relay says it is."""
    sock, offer = app.take(front)
    sock.setblocking(False)
    connection = Connection(sock, offer)
    connection.timeout = 10
    return connection, front.event(subevent="handed_over")["transport"]


def carries(connection: Connection, client: TlsClient) -> bool:
    client.write(b"question")
    connection.write(b"answer")
    return (connection.read(), client.receive(6)) == (b"question", b"answer")


def test_the_descriptor_is_plain_to_who_reads_and_writes(front: Relaying, app: Application) -> None:
    client = front.client()
    sock, offer = app.take(front)
    with sock:
        assert offer.session.read.in_kernel
        assert offer.session.write.in_kernel
        sock.sendall(b"in clear")
        assert client.receive(8) == b"in clear"
        client.write(b"likewise")
        sock.settimeout(10)
        assert sock.recv(100) == b"likewise"


@either_version
def test_it_moves_however_much_a_connection_has_to_carry_elsewhere(
    app: Application, support: Support, suite: Suite
) -> None:
    with relaying(replace(plan_for(app, kernel_after=1 << 30), kernel=support)) as front:
        client = front.client(suite=suite)
        connection, transport = taken(front, app)
        assert (transport, connection.home) == ("kernel", "kernel")
        assert carries(connection, client)
        connection.abort()


def test_it_stays_in_user_space_where_the_listener_says_so(
    app: Application, support: Support
) -> None:
    with relaying(replace(plan_for(app, kernel_after=-1), kernel=support)) as front:
        client = front.client()
        connection, transport = taken(front, app)
        assert (transport, connection.home) == ("user", "user")
        assert carries(connection, client)
        connection.abort()


@pytest.mark.parametrize("lacks", ["rx", "tx"])
def test_a_direction_that_the_kernel_cannot_do_stays_in_user_space(
    app: Application, support: Support, lacks: str
) -> None:
    some = replace(support, **{lacks: frozenset()})
    with relaying(replace(plan_for(app, kernel_after=0), kernel=some)) as front:
        client = front.client()
        connection, transport = taken(front, app)
        assert transport == connection.home == ("kernel-tx" if lacks == "rx" else "user")
        assert carries(connection, client)
        connection.abort()


def test_a_session_whose_client_has_closed_already_stays_in_user_space(
    front: Relaying, app: Application
) -> None:
    """The kernel wants both sides open; the answer is due all the same."""

    def change(session: Session) -> Session:
        peer = Peering(session.suite, session.read)
        return replace(session, unread=peer.record(DATA, b"all of it") + peer.record(21, b"\1\0"))

    client = front.client(change, closed=True)
    connection, transport = taken(front, app)
    assert (transport, connection.home) == ("user", "user")
    assert [connection.read(), connection.read()] == [b"all of it", b""]
    connection.write(b"answer")
    assert client.receive(6) == b"answer"
    connection.abort()


def test_close_notify_that_was_read_already_is_told_of(front: Relaying, app: Application) -> None:
    def change(session: Session) -> Session:
        peer = Peering(session.suite, session.read)
        return replace(session, unread=peer.record(DATA, b"all of it") + peer.record(21, b"\1\0"))

    client = front.client(change)
    sock, offer = app.take(front)
    assert offer.session.read.in_kernel
    assert offer.session.read.closed
    sock.setblocking(False)
    with Connection(sock, offer) as connection:
        assert [connection.read(), connection.read()] == [b"all of it", b""]
        connection.write(b"answer")
        assert client.receive(6) == b"answer"
        connection.abort()


def halves(session: Session, kept: int) -> tuple[bytes, bytes]:
    """A record, and the start and the rest of the one that follows."""
    peer = Peering(session.suite, session.read)
    first, second = peer.record(DATA, b"first, "), peer.record(DATA, b"and second")
    return first + second[:kept], second[kept:]


@either_version
@pytest.mark.parametrize("kept", [0, 1, 5, 20])
def test_what_was_read_already_comes_before_what_the_kernel_gives(
    front: Relaying, app: Application, suite: Suite, kept: int
) -> None:
    """The rest of a record is waited for: between two of them the kernel can take over."""
    unread, rest = halves(sessions(suite)[0], kept)
    client = front.client(lambda session: replace(session, unread=unread), suite=suite)
    client.sock.sendall(rest)
    client.end.writer.sequence += 2
    connection, transport = taken(front, app)

    assert transport == "kernel"
    seen = b""
    while len(seen) < 17:
        seen += connection.read()
    assert seen == b"first, and second"
    if suite is not AES128_12:  # its explicit nonces would repeat
        assert carries(connection, client)
    connection.abort()


def test_a_rest_that_does_not_come_is_the_applications_to_wait_for(
    front: Relaying, app: Application
) -> None:
    unread, rest = halves(sessions(AES128)[0], 20)
    client = front.client(lambda session: replace(session, unread=unread))
    [at_the_relay] = front.connections
    channel = app.accepted(front)
    reader = at_the_relay.to_target.reader
    assert reader is not None
    front.until(lambda: len(reader.unread) == 20)  # the first was opened
    front.loop.advance(SETTLE_SECONDS + 0.1)
    sock, offer = received(front, channel)
    channel.send(b"taken\n")
    channel.close()
    sock.setblocking(False)
    connection = Connection(sock, offer)
    connection.timeout = 10
    assert connection.home == "kernel-tx"
    assert connection.read() == b"first, "
    client.sock.sendall(rest)
    assert connection.read() == b"and second"
    connection.abort()


def test_what_was_sealed_and_not_sent_goes_first(front: Relaying, app: Application) -> None:
    def change(session: Session) -> Session:
        unsent = Peering(session.suite, session.write).record(DATA, b"sealed by the acceptor")
        return replace(session, unsent=unsent, write=replace(session.write, sequence=1))

    client = front.client(change)
    connection, transport = taken(front, app)
    connection.write(b", and by the kernel")

    assert transport == "kernel"
    assert client.receive(41) == b"sealed by the acceptor, and by the kernel"
    connection.abort()


def test_a_client_that_breaks_the_protocol_meanwhile_is_told(
    front: Relaying, app: Application
) -> None:
    client = front.client(lambda session: replace(session, unread=b"\x17\x03\x03\x00\x40\0\0"))
    channel = app.accepted(front)
    client.sock.sendall(bytes(62))
    with channel:
        ended = front.event(subevent="client_disconnect")

        assert ended["error_msg"] == "a record does not authenticate"
        assert channel.recv(100) == b""


def test_a_client_that_leaves_meanwhile_is_not_handed_over(
    front: Relaying, app: Application
) -> None:
    client = front.client(lambda session: replace(session, unread=b"\x17\x03"))
    channel = app.accepted(front)
    client.sock.close()
    with channel:
        ended = front.event(subevent="client_disconnect")

        assert ended["error_msg"] == "closed without close_notify"
        assert channel.recv(100) == b""


# A program in C


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("c") / "receive"
    command = ["gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-o", str(made), str(SOURCE)]
    subprocess.run(command, check=True, timeout=120)
    return made


class Receiving:
    """The example, running."""

    def __init__(self, program: Path, path: Path) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [program, path, "nobody"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for(path.is_socket, "it listens")
        path.chmod(0o666)

    def told(self) -> dict[str, object]:
        """What it says of the next client."""
        assert self.process.stdout is not None
        found: dict[str, object] = json.loads(self.process.stdout.readline())
        return found

    def stop(self) -> str:
        self.process.kill()
        _, errors = self.process.communicate(timeout=TIMEOUT)
        return errors


@pytest.fixture
def receiving(program: Path, public_path: Path) -> Iterator[Receiving]:
    with ExitStack() as stack:
        made = Receiving(program, public_path / "app.sock")
        stack.callback(made.stop)
        yield made


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_program_in_c_serves_clients_and_ends_in_order(
    start: Start, receiving: Receiving, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    front = start({"target": f"handoff:{receiving.path}", "kernel-tls": "on", "alpn": ["echo"]})
    data = random_bytes(200_000)
    with memory_client(front.port(), certificates.ca, version) as client:
        assert client.exchange(data, len(data)) == sha256(data)
        host, port = client.sock.getsockname()
        client.close_write()
        assert client.read() == b""  # close_notify

    told = receiving.told()
    assert (told["client_ip"], told["client_port"]) == (host, port)
    assert told["tls_version"] == version.name.replace("_", ".")
    assert told["sni"] == "localhost"
    assert front.wait("proxy", subevent="handed_over")["transport"] == "kernel"
    assert not receiving.stop()


def test_a_program_in_c_serves_several_clients_at_once(
    start: Start, receiving: Receiving, certificates: Certificates
) -> None:
    front = start({"target": f"handoff:{receiving.path}", "kernel-tls": "on"})
    context = trusting(certificates.ca)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(front.port(), context)) for _ in range(5)]
        for number, client in enumerate(clients):
            client.sendall(b"client %d" % number)
        for number, client in enumerate(clients):
            assert receive(client, 8) == b"client %d" % number
        for client in clients:
            assert isinstance(client.unwrap(), socket.socket)


def test_a_program_in_c_confirms_no_session_that_it_cannot_use(
    start: Start, receiving: Receiving, certificates: Certificates
) -> None:
    front = start({"target": f"handoff:{receiving.path}", "kernel-tls": "off"})
    cut_off = ssl.SSLEOFError, ConnectionResetError
    with memory_client(front.port(), certificates.ca) as client, pytest.raises(cut_off):
        client.read()

    told = front.wait("proxy", subevent="server_connect")
    assert told["error_desc"] == "it closed without an answer"
