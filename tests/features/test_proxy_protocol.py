"""PROXY headers: taken from whom the listener trusts, and sent to targets, TLS or not."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import google_crc32c
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from harness.backends import over_tls, server_context
from harness.clients import connect, echoes, read_to_end, receive, trusting
from harness.homes import TIMEOUT
from harness.pki import Identity
from harness.target import accepted, silent_target, target_of

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Certificates
    from features.conftest import Start, Targets
    from harness.front import Front

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 443\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2 = SIGNATURE + bytes.fromhex("2111000c c0000201 c6336402 c350 01bb")
V2_SIX = (
    SIGNATURE
    + bytes.fromhex("21210024")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::2")
    + bytes.fromhex("c350 01bb")
)
HERE = ["127.0.0.0/8"]
ELSEWHERE = ["192.0.2.0/24", "2001:db8::/32"]


@dataclass
class Received:
    """A version 2 header as a target reads it, by a reader of its own. `tls` are the sub-TLVs."""

    raw: bytes
    command: int
    source: tuple[str, int] | None
    destination: tuple[str, int] | None
    tlvs: dict[int, bytes] = field(default_factory=dict)
    client: int = 0
    verify: int = -1
    tls: dict[int, bytes] = field(default_factory=dict)


def read_tlvs(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        end = 3 + int.from_bytes(data[1:3], "big")
        assert len(data) >= end
        assert data[0] not in found
        found[data[0]], data = data[3:end], data[end:]
    return found


def read_header(connection: socket.socket) -> Received:
    """Read a version 2 header off a connection, and nothing behind it."""
    head = receive(connection, 16)
    assert head[:12] == SIGNATURE
    command, family, length = head[12], head[13], int.from_bytes(head[14:16], "big")
    body = receive(connection, length)
    size = {0x11: 4, 0x21: 16, 0: 0}[family]
    hosts = [
        socket.inet_ntop(socket.AF_INET if size == 4 else socket.AF_INET6, each)
        for each in (body[:size], body[size : 2 * size])
        if size
    ]
    ports = [int.from_bytes(body[at : at + 2], "big") for at in (2 * size, 2 * size + 2)]
    source, destination = zip(hosts, ports, strict=False) if hosts else (None, None)
    tlvs = read_tlvs(body[2 * size + 4 * bool(size) :])
    received = Received(head + body, command, source, destination, tlvs)
    if ssl_tlv := received.tlvs.get(0x20):
        received.client, received.verify = ssl_tlv[0], int.from_bytes(ssl_tlv[1:5], "big")
        received.tls = read_tlvs(ssl_tlv[5:])
    return received


def sum_of(received: Received) -> bytes:
    """Compute what the checksum has to be."""
    sent = received.tlvs[3]
    place = received.raw.index(b"\x03\x00\x04" + sent) + 3
    blank = received.raw[:place] + bytes(4) + received.raw[place + 4 :]
    return int(google_crc32c.value(blank)).to_bytes(4, "big")


# Received


@pytest.mark.parametrize(
    ("header", "ip"), [(V1, "192.0.2.1"), (V2, "192.0.2.1"), (V2_SIX, "2001:db8::1")]
)
def test_the_log_has_the_client_that_a_listed_network_tells_of(
    start: Start, targets: Targets, context: ssl.SSLContext, header: bytes, ip: str
) -> None:
    front = start({"target": targets.echo(), "accept_proxy": HERE})

    with connect(front.port(), context, lead=header) as client:
        assert echoes(client)

    for event in (front.wait("auth"), front.wait("proxy", subevent="client_disconnect")):
        assert (event["client_ip"], event["client_port"]) == (ip, "50000")


@pytest.mark.parametrize("header", [V1, V2])
def test_a_header_in_pieces_is_read(
    start: Start, targets: Targets, context: ssl.SSLContext, header: bytes
) -> None:
    front = start({"target": targets.echo(), "accept_proxy": HERE})

    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header:
            raw.sendall(bytes([byte]))
        with context.wrap_socket(raw, server_hostname="localhost") as client:
            assert echoes(client)

    assert front.wait("auth")["client_ip"] == "192.0.2.1"


@pytest.mark.parametrize("header", [V1, V2])
def test_from_other_networks_a_header_is_garbage(
    start: Start, targets: Targets, header: bytes
) -> None:
    front = start({"target": targets.echo(), "accept_proxy": ELSEWHERE})

    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        raw.sendall(header)
        read_to_end(raw)

    denied = front.wait("auth", outcome="denied")
    assert denied["client_ip"] == "127.0.0.1"
    assert denied["reason"] == "not_tls"


def test_from_other_networks_clients_come_without_a_header(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo(), "accept_proxy": ELSEWHERE})

    with connect(front.port(), context) as client:
        assert echoes(client)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PROXY TCP4 192.0.2.1\r\n",
        V2[:12] + b"\x31" + V2[13:],
    ],
    ids=["no header", "a malformed line", "a later version"],
)
def test_from_a_listed_network_nothing_comes_without_a_header(
    start: Start, targets: Targets, sent: bytes
) -> None:
    front = start({"target": targets.echo(), "accept_proxy": HERE})

    with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
        raw.sendall(sent)
        assert read_to_end(raw) == b""

    assert front.wait("auth", outcome="denied")["reason"] == "bad_proxy_header"


def test_a_proxy_that_speaks_for_itself_is_the_client(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.echo(), "accept_proxy": HERE})

    with connect(front.port(), context, lead=SIGNATURE + bytes.fromhex("20000000")) as client:
        assert echoes(client)

    assert front.wait("auth")["client_ip"] == "127.0.0.1"


def test_limits_of_sources_are_for_the_client_and_not_for_its_proxy(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start(
        {"target": targets.echo(), "accept_proxy": HERE}, limits={"connections-per-source": 1}
    )
    other = V1.replace(b"192.0.2.1", b"192.0.2.9")

    with (
        connect(front.port(), context, lead=V1) as first,
        connect(front.port(), context, lead=other) as second,
    ):
        assert echoes(first)
        assert echoes(second)
        with pytest.raises((ssl.SSLError, OSError)):
            connect(front.port(), context, lead=V1)

    told = front.wait("refused")
    assert (told["reason"], told["client_ip"]) == ("source_connections", "192.0.2.1")


@contextmanager
def haproxy(directory: Path, configuration: str, *sockets: socket.socket) -> Iterator[None]:
    """Run HAProxy in front of or behind handfast; its sockets are the test's.

    `maxconn` bounds the numbers of descriptors that it takes, too.
    """
    file = directory / "haproxy.cfg"
    file.write_text(
        "global\n  maxconn 500\ndefaults\n  timeout connect 10s\n  timeout client 10s\n"
        f"  timeout server 10s\n{configuration}"
    )
    command = ["haproxy", "-db", "-q", "-f", str(file)]
    descriptors = [each.fileno() for each in sockets]
    with subprocess.Popen(command, pass_fds=descriptors) as process:
        try:
            yield
        finally:
            process.terminate()


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_handfast_behind_haproxy_knows_the_client(
    start: Start, targets: Targets, context: ssl.SSLContext, tmp_path: Path, send: str
) -> None:
    front = start({"target": targets.echo(), "accept_proxy": HERE})
    with socket.create_server(("127.0.0.1", 0)) as outer:
        settings = (
            f"listen front\n  mode tcp\n  bind fd@{outer.fileno()}\n"
            f"  server handfast 127.0.0.1:{front.port()} {send}\n"
        )
        with (
            haproxy(tmp_path, settings, outer),
            connect(outer.getsockname()[1], context, source="127.0.0.5") as client,
        ):
            assert echoes(client)
            port = client.getsockname()[1]

    told = front.wait("auth")
    assert (told["client_ip"], told["client_port"]) == ("127.0.0.5", str(port))


# Sent


def test_a_target_gets_the_client_in_a_line_before_everything_else(
    start: Start, context: ssl.SSLContext
) -> None:
    with silent_target() as listening:
        front = start({"target": target_of(listening), "send_proxy": "v1"})
        with connect(front.port(), context) as client, accepted(listening) as connection:
            client.sendall(b"hello")
            expected = (
                f"PROXY TCP4 127.0.0.1 127.0.0.1 {client.getsockname()[1]} {front.port()}\r\nhello"
            )
            assert receive(connection, len(expected)).decode() == expected


def test_what_a_proxy_told_is_passed_on(start: Start, context: ssl.SSLContext) -> None:
    with silent_target() as listening:
        front = start({"target": target_of(listening), "accept_proxy": HERE, "send_proxy": "v1"})
        with (
            connect(front.port(), context, lead=V2),
            accepted(listening) as connection,
        ):
            assert receive(connection, len(V1)) == V1


@pytest.fixture
def alice(certificates: Certificates) -> Identity:
    return certificates.client("alice")


def header_for(
    start: Start,
    certificates: Certificates,
    context: ssl.SSLContext,
    **listener: object,
) -> Received:
    """Connect once, and give what the target was told."""
    with silent_target() as listening:
        front = start({"target": target_of(listening), "send_proxy": "v2", **listener})
        with connect(front.port(), context) as client, accepted(listening) as connection:
            received = read_header(connection)
            assert received.source == client.getsockname()
            assert received.destination == ("127.0.0.1", front.port())
            client.sendall(b"hello")
            assert receive(connection, 5) == b"hello"
            return received


@pytest.mark.parametrize(
    ("version", "told", "cipher"),
    [
        (ssl.TLSVersion.TLSv1_2, b"TLSv1.2", b"ECDHE-ECDSA-AES256-GCM-SHA384"),
        (ssl.TLSVersion.TLSv1_3, b"TLSv1.3", b"TLS_AES_256_GCM_SHA384"),
    ],
)
def test_the_header_tells_of_the_tls_session(
    start: Start,
    certificates: Certificates,
    version: ssl.TLSVersion,
    told: bytes,
    cipher: bytes,
) -> None:
    context = trusting(certificates.ca, version)
    context.set_alpn_protocols(["h2"])
    received = header_for(start, certificates, context, alpn=["h2", "http/1.1"])

    assert (received.command, received.client, received.verify) == (0x21, 1, 1)
    assert received.tlvs[1] == b"h2"
    assert received.tlvs[2] == b"localhost"
    assert received.tls[0x21] == told
    assert received.tls[0x23] == cipher
    assert received.tls[0x24] == b"ecdsa-with-SHA256"
    assert received.tls[0x25] == b"EC256"
    assert received.tls[0x26].lower() == b"x25519"


def test_the_checksum_is_that_of_the_header(
    start: Start, certificates: Certificates, context: ssl.SSLContext
) -> None:
    received = header_for(start, certificates, context)

    assert received.tlvs[3] == sum_of(received)


def test_the_header_tells_of_a_client_certificate(
    start: Start, certificates: Certificates, alice: Identity, tmp_path: Path
) -> None:
    context = trusting(certificates.ca)
    context.load_cert_chain(*alice.write(tmp_path, "alice"))
    auth = {"mode": "require", "trusted-certs": [str(certificates.ca)]}

    received = header_for(start, certificates, context, client_auth=auth)

    assert (received.client, received.verify) == (0b111, 0)
    assert received.tls[0x22] == b"alice"
    assert received.tls[0x28] == alice.certificate.public_bytes(Encoding.DER)


def test_of_a_resumed_session_the_certificate_was_shown_on_an_earlier_connection(
    start: Start, certificates: Certificates, alice: Identity, tmp_path: Path
) -> None:
    context = trusting(certificates.ca)
    context.load_cert_chain(*alice.write(tmp_path, "alice"))
    auth = {"mode": "require", "trusted-certs": [str(certificates.ca)]}
    with silent_target() as listening:
        front = start({"target": target_of(listening), "send_proxy": "v2", "client_auth": auth})
        with connect(front.port(), context) as client, accepted(listening) as connection:
            read_header(connection)
            connection.sendall(b"x")
            client.recv(1)  # behind the ticket
            session = client.session
        with connect(front.port(), context, session), accepted(listening) as connection:
            received = read_header(connection)

    assert (received.client, received.verify) == (0b101, 0)
    assert received.tls[0x28] == alice.certificate.public_bytes(Encoding.DER)


def test_a_target_with_tls_gets_the_header_before_the_first_message(
    start: Start, targets: Targets, certificates: Certificates, context: ssl.SSLContext
) -> None:
    inside = server_context(certificates.chain, certificates.key)

    def serve(connection: socket.socket) -> None:
        header = read_header(connection)
        over_tls(inside, lambda tls: tls.sendall(b"hello " + header.tlvs[2]))(connection)

    address = targets.run(serve).target
    tls = {"server-name": "localhost", "trusted-certs": [str(certificates.ca)]}
    front = start({"targets": [{"address": address, "tls": tls}], "send_proxy": "v2"})

    with connect(front.port(), context) as client:
        assert read_to_end(client) == b"hello localhost"


def test_of_a_client_that_is_passed_through_the_header_tells_its_name_and_no_session(
    start: Start,
) -> None:
    with silent_target() as listening:
        route = {"sni": "inside.example", "passthrough": True, "target": target_of(listening)}
        front = start({"certificates": None, "routes": [{**route, "send-proxy": "v2"}]})
        outgoing = ssl.MemoryBIO()
        tls = ssl.create_default_context().wrap_bio(
            ssl.MemoryBIO(), outgoing, server_hostname="inside.example"
        )
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        with socket.create_connection(("127.0.0.1", front.port()), TIMEOUT) as raw:
            raw.sendall(hello)
            with accepted(listening) as connection:
                received = read_header(connection)
                assert receive(connection, len(hello)) == hello

    assert received.tlvs[2] == b"inside.example"
    assert 0x20 not in received.tlvs


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_behind_handfast_knows_the_client(
    start: Start, certificates: Certificates, tmp_path: Path, version: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inner:
        front = start({"target": target_of(inner), "send_proxy": version})
        settings = (
            f"frontend back\n  mode http\n  bind fd@{inner.fileno()} accept-proxy\n"
            "  http-request return status 200 content-type text/plain lf-string "
            '"%[src] %[src_port] %[dst_port] %[fc_pp_authority]"\n'
        )
        with haproxy(tmp_path, settings, inner):
            said = curl(front, certificates, tmp_path, "--local-port", "20000-29999")

    source, port, destination, *authority = said.split(" ")
    event = front.wait("auth", outcome="granted")
    assert (source, port) == (event["client_ip"], event["client_port"])
    assert destination == str(front.port())
    assert authority == (["localhost"] if version == "v2" else [""])


def curl(front: Front, certificates: Certificates, directory: Path, *options: str) -> str:
    done = subprocess.run(
        ["curl", "-sS", "--cacert", str(certificates.ca), *options,
         f"https://localhost:{front.port()}/"],
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_haproxy_takes_the_header_of_a_client_with_a_certificate(
    start: Start, certificates: Certificates, alice: Identity, tmp_path: Path
) -> None:
    auth = {"mode": "require", "trusted-certs": [str(certificates.ca)]}
    chain, key = alice.write(tmp_path, "alice")
    with socket.create_server(("127.0.0.1", 0)) as inner:
        front = start({"target": target_of(inner), "send_proxy": "v2", "client_auth": auth})
        settings = (
            f"frontend back\n  mode http\n  bind fd@{inner.fileno()} accept-proxy\n"
            '  http-request return status 200 content-type text/plain lf-string "%[src]"\n'
        )
        with haproxy(tmp_path, settings, inner):
            said = curl(front, certificates, tmp_path, "--cert", str(chain), "--key", str(key))

    assert said == "127.0.0.1"
