"""Each flight of a handshake is one write: TCP then sends it in as few segments as it can.

A real acceptor drives a real client over a socket pair; its own socket counts what it sends.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from handfast.accept.acceptor import Acceptor, Door, Terms
from handfast.accept.attempt import Attempt
from handfast.config import Limits
from handfast.handover import channel
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.tls.certificates import Credential
from handfast.tls.openssl import OpenSSLEngine
from handfast.transport.census import Census, Column
from handfast.transport.loop import Loop
from harness.clients import trusting
from harness.pki import issue

if TYPE_CHECKING:
    from conftest import Certificates

DEADLINE = 10.0
ALERT = 21
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class CountingSocket(socket.socket):
    """A socket that keeps what each `send` was given."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.sent: list[bytes] = []

    def send(self, data: object, flags: int = 0) -> int:
        self.sent.append(bytes(data))  # type: ignore[call-overload]  # anything with bytes in it
        return super().send(data, flags)  # type: ignore[arg-type]


class Rig:
    """An acceptor without a listening socket, which meets one client after another."""

    def __init__(self, directory: Path) -> None:
        self._log = Log.open(directory / "log", Level.INFO, process_type="worker")
        self._sender, self._receiver = channel.pair()

    def meet(
        self, engine: OpenSSLEngine, context: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> tuple[list[bytes], ssl.SSLSession | None]:
        """Do one handshake; give the server's writes, and the client's session if it has one."""
        loop = Loop()
        terms = Terms(1, DEADLINE, Limits(), Column(Census(1), 0))
        acceptor = Acceptor(loop, (), (self._sender,), terms, self._log, loop.stop)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(DEADLINE)
        client = Client(theirs, context, session)
        with CountingSocket(ours) as counting:
            door = Door(0, counting, engine, "127.0.0.1", 443)
            place = acceptor.admit(door, "127.0.0.1")
            assert place is not None
            attempt = Attempt(acceptor, door, counting, "127.0.0.1", 1, place, headed=False)
            acceptor.attempts.add(attempt)
            attempt.start()
            acceptor.drain()  # it ends with its last attempt, and that has a deadline
            loop.run()
        if handed_over := channel.receive(self._receiver):
            os.close(handed_over[1][0])
        client.join(DEADLINE)
        loop.close()
        return counting.sent, client.session

    def close(self) -> None:
        self._log.close()
        self._sender.close()
        self._receiver.close()


class Client(threading.Thread):
    """Shakes hands, then reads to the end, and with that the tickets."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, session: ssl.SSLSession | None
    ) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._context = context
        self._offered = session
        self.session: ssl.SSLSession | None = None
        self.start()

    def run(self) -> None:
        with self._sock, suppress(ssl.SSLError, ConnectionError):
            tls = self._context.wrap_socket(
                self._sock, server_hostname="localhost", session=self._offered
            )
            with tls:
                self.session = tls.session
                with suppress(ssl.SSLError):
                    tls.recv(1)
                self.session = tls.session


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    running = Rig(tmp_path)
    yield running
    running.close()


def engine_of(certificates: Certificates, *, require: bool = False) -> OpenSSLEngine:
    return OpenSSLEngine(
        [Credential(certificates.server.chain, certificates.server.key)],
        trusted=(certificates.root.certificate,) if require else (),
        require=require,
    )


def kinds(flight: bytes) -> list[int]:
    """List the types of the records of a flight; it ends where its last record ends."""
    found = []
    while flight:
        size = int.from_bytes(flight[3:5], "big")
        assert len(flight) >= 5 + size, "a record is cut in two"
        found.append(flight[0])
        flight = flight[5 + size :]
    return found


@pytest.mark.parametrize(
    ("version", "first", "second"),
    [
        # ServerHello, CCS, then sealed: extensions, certificate, verify, Finished; two tickets.
        (TLS13, [22, 20, 23, 23, 23, 23], [23, 23]),
        # Hello, certificate, key exchange, done; ticket, CCS, Finished.
        (TLS12, [22, 22, 22, 22], [22, 20, 22]),
    ],
)
def test_a_full_handshake_takes_the_server_two_writes(
    rig: Rig,
    certificates: Certificates,
    version: ssl.TLSVersion,
    first: list[int],
    second: list[int],
) -> None:
    sent, _ = rig.meet(engine_of(certificates), trusting(certificates.ca, version))

    assert [kinds(flight) for flight in sent] == [first, second]


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_a_handshake_with_a_client_certificate_takes_the_server_two_writes(
    rig: Rig, certificates: Certificates, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    context = trusting(certificates.ca, version)
    context.load_cert_chain(*certificates.client().write(tmp_path, "client"))

    sent, session = rig.meet(engine_of(certificates, require=True), context)

    assert session is not None
    assert len(sent) == 2


@pytest.mark.parametrize(("version", "writes"), [(TLS12, 1), (TLS13, 2)])
def test_a_resumption_takes_no_more_writes_than_flights(
    rig: Rig, certificates: Certificates, version: ssl.TLSVersion, writes: int
) -> None:
    engine, context = engine_of(certificates), trusting(certificates.ca, version)
    full, session = rig.meet(engine, context)

    resumed, _ = rig.meet(engine, context, session)

    assert session is not None
    assert len(resumed) == writes
    assert sum(map(len, resumed)) < sum(map(len, full)) - len(certificates.server.pem()) // 2


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_a_refusal_is_one_write_more(
    rig: Rig, certificates: Certificates, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    context = trusting(certificates.ca, version)
    context.load_cert_chain(*issue("stranger", client=True).write(tmp_path, "stranger"))

    sent, _ = rig.meet(engine_of(certificates, require=True), context)

    assert len(sent) == 2
    assert len(kinds(sent[1])) == 1


def test_a_hello_that_is_refused_is_answered_in_one_write(
    rig: Rig, certificates: Certificates
) -> None:
    context = trusting(certificates.ca, TLS12)
    context.set_ciphers("AES128-GCM-SHA256")

    sent, session = rig.meet(engine_of(certificates), context)

    assert session is None
    assert [kinds(flight) for flight in sent] == [[ALERT]]
