"""A session that is given to an application: once, whole, and to whom it may go."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from handfast.app import Connection
from handfast.config import Service, Target, TargetTls, TcpAddress
from handfast.errors import PeerError
from handfast.handover.application import TAKEN, Facts, Offer, encode
from handfast.relay import giving
from handfast.tls.session import Peer, Session
from harness.homes import IN_KERNEL
from unit.relay.applications import Application, plan_for, resolving
from unit.relay.relaying import (
    NO_TIMEOUTS,
    Relaying,
    TlsClient,
    listener_of,
    listening,
    plan_of,
    relaying,
)
from unit.tls.sessions import AES128, DATA, End, Peering

CERTIFICATES = (b"leaf", b"issuer")
if TYPE_CHECKING:
    from conftest import Certificates

Apply = Callable[..., Application]


@pytest.fixture
def apply(tmp_path: Path) -> Iterator[Apply]:
    with ExitStack() as stack:

        def make(name: str = "app.sock", user: str = "") -> Application:
            made = Application(tmp_path / name, user)
            stack.enter_context(made.sock)
            return made

        yield make


@pytest.fixture
def app(apply: Apply) -> Application:
    return apply()


@pytest.fixture
def front(app: Application) -> Iterator[Relaying]:
    with relaying(plan_for(app)) as running:
        yield running


def refused(front: Relaying) -> str:
    """Give why the connection was not handed over."""
    return front.event(subevent="server_connect").get("error_desc", "")


def is_told_of_an_error(client: TlsClient) -> bool:
    with pytest.raises(PeerError, match="the peer sent alert internal_error"):
        client.wait_for_the_end()
    return True


def test_an_application_gets_the_socket_the_session_and_the_facts(
    front: Relaying, app: Application
) -> None:
    def change(session: Session) -> Session:
        peer = Peer(
            "192.0.2.1", 4433, "a.example", "h2", "X25519MLKEM768", True, CERTIFICATES,
            dialled=("198.51.100.1", 443),
        )  # fmt: skip
        return replace(session, peer=peer)

    client = front.client(change)
    sock, offer = app.take(front)

    assert offer.facts == Facts(
        client_ip="192.0.2.1",
        client_port=4433,
        listen_ip="198.51.100.1",
        listen_port=443,
        listener="test",
        sni="a.example",
        alpn="h2",
        tls_version="TLSv1.3",
        ciphersuite="TLS_AES_128_GCM_SHA256",
        group="X25519MLKEM768",
        resumed=True,
        certificates=CERTIFICATES,
    )
    with sock:
        assert sock.getpeername() == client.sock.getsockname()


@pytest.mark.skipif(IN_KERNEL, reason="the kernel seals there; tests/kernel has that")
def test_it_goes_on_where_the_acceptor_stopped(front: Relaying, app: Application) -> None:
    """What was read and not opened, and what was sealed and not written, travels along."""

    def change(session: Session) -> Session:
        sealed = Peering(session.suite, session.write).record(DATA, b"sealed ")
        record = Peering(session.suite, session.read).record(DATA, b"question")
        return replace(
            session, unread=record, unsent=sealed, write=replace(session.write, sequence=1)
        )

    client = front.client(change)
    sock, offer = app.take(front)
    with sock:
        ours = End(offer.session)
        assert ours.open(b"") == b"question"
        sock.sendall(offer.session.unsent + ours.seal(b"answer"))
        assert client.receive(len(b"sealed answer")) == b"sealed answer"


def test_the_relay_forgets_a_connection_that_was_taken(front: Relaying, app: Application) -> None:
    client = front.client()
    [connection] = front.connections
    reader, writer = connection.to_target.contents, connection.to_client.sealer
    sock, _ = app.take(front)
    with sock:
        told = front.event(subevent="handed_over")
        counts = front.relay.counters.counts()

        assert told["server_ip"] == str(app.address)
        assert not front.connections
        assert (counts.numbers["handed_over"], counts.numbers["active"]) == (1, 0)
        assert [each["subevent"] for each in front.events()] == ["client_connect", "handed_over"]
        assert connection.client.fileno() == -1
        for half in (reader, writer):
            assert half is not None
            with pytest.raises(Exception, match="exported"):
                half.consume()
        client.look()
        assert not client.ended


def test_an_application_that_is_not_there_is_a_target_that_failed(
    front: Relaying, app: Application
) -> None:
    app.sock.close()
    client = front.client()
    resolving(front, lambda: front.events(subevent="server_connect"))

    assert refused(front) == "Connection refused"
    assert front.event("target", state="down")["address"] == str(app.address)
    assert is_told_of_an_error(client)


def test_another_target_is_tried_when_one_could_not_be_asked(apply: Apply) -> None:
    gone, there = apply("gone.sock"), apply("there.sock")
    gone.sock.close()
    with relaying(plan_for(gone, there)) as front:
        front.client()
        sock, _ = there.take(front)
        sock.close()

        assert front.event(subevent="handed_over")["server_ip"] == str(there.address)


def test_another_target_is_tried_when_the_message_could_not_be_sent(
    apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session is taken out for the message, and has to be whole again."""
    first, second = apply("first.sock"), apply("second.sock")
    tries: list[object] = []

    def failing(offer: Offer) -> bytearray:
        tries.append(offer)
        if len(tries) == 1:
            raise OSError(32, "Broken pipe")
        return encode(offer)

    monkeypatch.setattr(giving, "encode", failing)
    with relaying(plan_for(first, second)) as front:
        client = front.client(
            lambda session: replace(
                session, unread=Peering(session.suite, session.read).record(DATA, b"question")
            )
        )
        with first.accepted(front):
            sock, offer = second.take(front)
        sock.setblocking(False)
        with Connection(sock, offer) as ours:
            assert ours.read() == b"question"
            ours.write(b"answer")
            assert client.receive(6) == b"answer"
            ours.abort()
        assert front.event("target", state="down")["error_desc"] == "Broken pipe"


def test_a_tcp_target_takes_over_when_the_message_could_not_be_sent(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(offer: Offer) -> bytearray:
        raise OSError(32, "Broken pipe")

    monkeypatch.setattr(giving, "encode", failing)
    with listening() as door:
        where = TcpAddress(host="127.0.0.1", port=door.getsockname()[1])
        service = Service(targets=(Target(address=app.address), Target(address=where)))
        with relaying(plan_of(listener_of(service))) as front:
            client = front.client(
                lambda session: replace(
                    session, unread=Peering(session.suite, session.read).record(DATA, b"early ")
                )
            )
            app.accepted(front).close()
            target = front.target(door)
            peer = Peering(AES128, client.end.session.write)
            peer.sequence = 1
            client.send_all(peer.record(DATA, b"and late"))
            assert target.receive(14) == b"early and late"
            target.send_all(b"answer")
            assert client.receive(6) == b"answer"


def test_a_target_with_tls_takes_over_when_the_message_could_not_be_sent(
    app: Application, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened for the application, which is so for the kernel, is sealed for the target."""

    def failing(offer: Offer) -> bytearray:
        raise OSError(32, "Broken pipe")

    monkeypatch.setattr(giving, "encode", failing)
    with listening() as door:
        where = TcpAddress(host="127.0.0.1", port=door.getsockname()[1])
        tls = TargetTls(server_name="localhost", trusted_certs=("ca.pem",))
        service = Service(targets=(Target(address=app.address), Target(address=where, tls=tls)))
        root = certificates.root.certificate.public_bytes(Encoding.DER)
        plan = plan_of(listener_of(service), anchors={"ca.pem": (root,)})
        with relaying(plan) as front:
            client = front.client(
                lambda session: replace(
                    session, unread=Peering(session.suite, session.read).record(DATA, b"early ")
                )
            )
            app.accepted(front).close()
            target = front.tls_target(door, certificates.chain, certificates.key)
            peer = Peering(AES128, client.end.session.write)
            peer.sequence = 1
            client.send_all(peer.record(DATA, b"and late"))
            assert target.receive(14) == b"early and late"
            target.write(b"answer")
            assert client.receive(6) == b"answer"


WRONG = [b"taken", b"taken\n\n", b"TAKEN\n", b"no\n", b"\0", b"taken\n" * 100, bytes(100_000)]


@pytest.mark.parametrize("answer", WRONG, ids=len)
def test_any_other_answer_is_the_end_and_no_other_target_is_tried(
    apply: Apply, answer: bytes
) -> None:
    first, second = apply("first.sock"), apply("second.sock")
    with relaying(plan_for(first, second)) as front:
        client = front.client()
        connection, sock, _ = first.offer(front)
        with connection, sock:
            connection.send(answer)
            told = front.event(subevent="server_connect")
            client.wait_for_the_end()

            assert told["error_msg"] == "the application did not take the session"
            assert told["error_desc"] == "it gave a wrong answer"
            assert not client.was_reset
            assert sock.recv(1) == b""  # nobody can use it any more
            with contextlib.suppress(OSError):
                sock.send(b"?")
            client.look()
            assert not client.opened
            assert front.event("target", state="down")["address"] == str(first.address)
            with pytest.raises(BlockingIOError):
                second.sock.accept()
        assert not front.connections


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(packets=st.lists(st.binary(max_size=40), max_size=6))
def test_nothing_that_an_application_sends_means_anything(
    tmp_path_factory: pytest.TempPathFactory, packets: list[bytes]
) -> None:
    """But for the one word: whatever comes first decides, and the rest is never read."""
    application = Application(tmp_path_factory.mktemp("fuzz") / "app.sock")
    with application.sock, relaying(plan_for(application)) as front:
        client = front.client()
        connection, sock, _ = application.offer(front)
        with connection, sock:
            for packet in packets:
                connection.send(packet, socket.MSG_NOSIGNAL)
            connection.shutdown(socket.SHUT_WR)
            front.until(lambda: not front.connections)
        taken = packets[:1] == [TAKEN]
        assert bool(front.events(subevent="handed_over")) == taken
        assert bool(front.events(subevent="client_disconnect")) != taken
        client.sock.close()


@pytest.mark.parametrize("closes", [True, False], ids=["closes", "dies"])
def test_an_application_that_ends_without_an_answer_ends_the_session(
    front: Relaying, app: Application, closes: bool
) -> None:
    client = front.client()
    connection, sock, _ = app.offer(front)
    if closes:
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    sock.close()
    client.wait_for_the_end()

    assert refused(front) == "it closed without an answer"
    assert not client.opened


def test_an_application_that_never_answers_has_the_connect_timeout(apply: Apply) -> None:
    app = apply()
    plan = replace(plan_for(app), timeouts=replace(NO_TIMEOUTS, connect=2.0))
    with relaying(plan) as front:
        client = front.client()
        connection, sock, _ = app.offer(front)
        with connection, sock:
            front.loop.advance(1.5)
            assert front.connections
            front.loop.advance(1.0)
            assert refused(front) == "it gave no answer in its time"
            client.wait_for_the_end()
            with pytest.raises(BrokenPipeError):
                connection.send(TAKEN)


def test_a_client_that_leaves_meanwhile_is_the_applications_to_see(
    front: Relaying, app: Application
) -> None:
    client = front.client()
    connection, sock, _ = app.offer(front)
    client.sock.close()
    with connection, sock:
        connection.send(TAKEN)
        front.event(subevent="handed_over")
        assert sock.recv(1) == b""


def test_a_drain_that_is_over_ends_what_was_not_confirmed(
    front: Relaying, app: Application
) -> None:
    client = front.client()
    connection, sock, _ = app.offer(front)
    with connection, sock:
        front.relay.end_all("draining is over")
        client.wait_for_the_end()

        assert sock.recv(1) == b""
        assert front.event(subevent="client_disconnect")["error_msg"] == "draining is over"
        assert not client.opened


# Who the application is


NOT_ROOT = 65534


def listens_as(user: int, app: Application) -> None:
    """Let the kernel say that somebody else listens: who called `listen` last counts."""
    os.seteuid(user)
    try:
        app.sock.listen()
    finally:
        os.seteuid(0)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be others")


@needs_root
def test_the_owner_of_the_socket_may_have_sessions(front: Relaying, app: Application) -> None:
    listens_as(NOT_ROOT, app)
    app.owner = NOT_ROOT
    front.client()
    app.take(front)[0].close()

    assert front.event(subevent="handed_over")


DOUBT = "others can write to /tmp; name the `user` of the target"


@needs_root
@pytest.mark.parametrize(
    ("owner", "doubt", "expected"),
    [
        (0, "", "it is of user 65534, and its socket of user 0"),
        (1234, "", "it is of user 65534, and its socket of user 1234"),
        (-1, DOUBT, DOUBT),
    ],
)
def test_anybody_else_gets_nothing(
    front: Relaying, app: Application, owner: int, doubt: str, expected: str
) -> None:
    listens_as(NOT_ROOT, app)
    app.owner, app.doubt = owner, doubt
    client = front.client()
    with app.accepted(front) as connection:
        assert refused(front) == expected
        assert connection.recv(100) == b""  # closed, and nothing was sent
    assert is_told_of_an_error(client)


@needs_root
@pytest.mark.parametrize(("uid", "may"), [(0, True), (NOT_ROOT, True), (1234, False)])
def test_the_user_of_the_target_decides_where_there_is_one(
    apply: Apply, uid: int, may: bool
) -> None:
    app = apply(user="shop")
    listens_as(uid, app)
    app.owner = uid
    with relaying(replace(plan_for(app), accounts={"shop": NOT_ROOT})) as front:
        front.client()
        if may:
            app.take(front)[0].close()
            assert front.event(subevent="handed_over")
        else:
            app.accepted(front).close()
            assert refused(front) == "it is of user 1234, not shop"


def test_descriptors_and_secrets_do_not_stay(front: Relaying, app: Application) -> None:
    def once() -> None:
        client = front.client()
        sock, _ = app.take(front)
        front.until(lambda: not front.connections)
        sock.close()
        client.sock.close()

    once()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        once()

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
