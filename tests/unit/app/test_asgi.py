"""ASGI on sessions from handfast: what the application is told, and how serving begins and ends."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypercorn.config import Config

from handfast import app
from handfast.app import asgi
from handfast.app.peer import Peer, peer_of
from handfast.handover.application import Facts, Offer, encode
from harness.pki import issue
from unit.app.clients import Client, pair
from unit.app.test_listener import post
from unit.tls.sessions import AES128, AES128_12, sessions

Scope = dict[str, Any]
ALICE = Facts(client_ip="2001:db8::1", client_port=4433, listen_ip="2001:db8::2", listen_port=443)


class Site:
    """An application that says what it was told, or echoes; it notes how serving goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[str] = []
        self.fails_to_start = False
        self.listener = app.listen(path)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        told = {key: scope[key] for key in ("scheme", "client", "server", "http_version")}
        said = body or json.dumps({**told, "tls": scope["extensions"]["tls"]}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": said})

    async def _lifespan(self, receive: Any, send: Any) -> None:
        while True:
            kind = (await receive())["type"]
            self.seen.append(kind)
            if kind == "lifespan.startup" and self.fails_to_start:
                await send({"type": "lifespan.startup.failed", "message": "no database"})
                return
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        config = Config()
        config.graceful_timeout = 1
        try:
            asyncio.run(
                asgi.serve(self, self.listener, config, shutdown_trigger=self._stopped)  # type: ignore[arg-type]
            )
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    async def _stopped(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._stop.wait)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self.listener.close()

    def client(self, facts: Facts) -> Client:
        """A client whose session was handed over."""
        server, other = sessions(AES128)
        far, near = pair()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel, near:
            channel.connect(str(self.path))
            post(channel, bytes(encode(Offer(facts, server))), near.fileno())
            assert channel.recv(10) == b"taken\n"
        return Client(far, other)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "app.sock")
    made.start()
    yield made
    made.stop()


def ask(client: Client, body: bytes = b"") -> bytes:
    """Make a request, and read the answer's body to the end."""
    head = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
    head += b"content-length: %d\r\n\r\n" % len(body)
    writer = threading.Thread(target=client.write, args=(head + body,))
    writer.start()
    answer = client.read(1 << 30)
    writer.join()
    head, _, said = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert client.end.reader.closed
    client.sock.close()
    return unchunked(said) if b"chunked" in head else said


def unchunked(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        whole, data = whole + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return whole


def test_the_application_is_told_of_the_real_client_and_its_tls(site: Site) -> None:
    assert json.loads(ask(site.client(ALICE))) == {
        "scheme": "https",
        "client": ["2001:db8::1", 4433],
        "server": ["2001:db8::2", 443],
        "http_version": "1.1",
        "tls": {
            "server_cert": None,
            "client_cert_chain": [],
            "client_cert_name": None,
            "client_cert_error": None,
            "tls_version": 0x0304,
            "cipher_suite": 0x1301,
        },
    }


def test_a_client_of_a_unix_socket_has_no_address(site: Site) -> None:
    assert json.loads(ask(site.client(Facts())))["client"] is None


def test_megabytes_go_both_ways(site: Site) -> None:
    body = os.urandom(2_000_000)

    assert ask(site.client(ALICE), body) == body


def peer(*certificates: bytes) -> Peer:
    return peer_of(Offer(Facts(certificates=certificates), sessions(AES128_12)[0]))


def test_a_client_certificate_is_described_as_the_extension_says() -> None:
    root = issue("root", ca=True)
    alice = issue("alice", root, client=True, unit="people")
    chain = [each.certificate.public_bytes(Encoding.DER) for each in (alice, root)]

    found = asgi.tls_extension(peer(*chain))

    assert found["client_cert_name"] == "CN=alice,OU=people"
    assert found["client_cert_chain"] == [alice.pem().decode(), root.pem().decode()]
    assert (found["tls_version"], found["cipher_suite"]) == (0x0303, 0xC02F)


def test_a_certificate_that_cannot_be_read_has_no_name() -> None:
    assert asgi.tls_extension(peer(b"what OpenSSL reads"))["client_cert_name"] is None


def test_one_who_breaks_off_disturbs_nobody(site: Site) -> None:
    first, second = site.client(ALICE), site.client(ALICE)
    first.write(b"GET / HTTP/1.1\r\n")
    first.sock.close()
    forged = site.client(ALICE)
    forged.sock.sendall(b"\x17\x03\x03\x00\x40" + bytes(64))

    assert json.loads(ask(second))["scheme"] == "https"
    forged.sock.close()


def test_the_application_is_told_when_serving_begins_and_ends(site: Site) -> None:
    ask(site.client(ALICE))
    idle = site.client(ALICE)
    idle.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert idle.read(15) == b"HTTP/1.1 200 \r\n"
    site.stop()

    idle.read(1 << 20)
    assert idle.end.reader.closed  # in order, though it was kept alive
    idle.sock.close()
    assert site.seen == ["lifespan.startup", "lifespan.shutdown"]
    assert site.error is None


def test_an_application_that_does_not_start_serves_nobody(tmp_path: Path) -> None:
    site = Site(tmp_path / "app.sock")
    site.fails_to_start = True
    site.start()
    site._thread.join(10)

    assert site.error is not None
    assert "no database" in str(site.error)
    site.stop()
