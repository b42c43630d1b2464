"""HAProxy in TCP mode takes our PROXY headers, and sends its own for us to read."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from handfast.transport.proxy_protocol import (
    Endpoint,
    Header,
    TlsFacts,
    build_v1,
    build_v2,
    parse,
)
from harness.homes import TIMEOUT

CLIENT = ("192.0.2.1", 50000)
LISTENER = ("198.51.100.2", 443)
ENDS = [
    (CLIENT, LISTENER),
    (("2001:db8::1", 50000), ("2001:db8::2", 443)),
    (CLIENT, ("2001:db8::2", 443)),
]
SENDS = ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,authority,unique-id"]
FACTS = TlsFacts(
    version="TLSv1.3",
    cipher="TLS_AES_128_GCM_SHA256",
    group="X25519MLKEM768",
    key_algorithm="EC256",
    signature_algorithm="ecdsa-with-SHA256",
    client_certificate=bytes(1500),
    common_name="a client",
)


@contextmanager
def haproxy(directory: Path, send: str) -> Iterator[tuple[socket.socket, Endpoint]]:
    """Run one between an address that wants a PROXY header and a target that is given one."""
    target, front = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    target.settimeout(TIMEOUT)
    config = directory / "haproxy.cfg"
    config.write_text(
        "global\n  maxconn 500\ndefaults\n  mode tcp\n  timeout connect 10s\n"
        "  timeout client 10s\n"
        f"  timeout server 10s\nlisten front\n  bind fd@{front.fileno()} accept-proxy\n"
        f"  unique-id-format %[fc_pp_authority]\n"
        f"  server target 127.0.0.1:{target.getsockname()[1]} {send}\n"
    )
    command = ["haproxy", "-db", "-q", "-f", str(config)]
    with target, front, subprocess.Popen(command, pass_fds=[front.fileno()]) as process:
        try:
            yield target, front.getsockname()
        finally:
            process.terminate()


def read_to_end(sock: socket.socket) -> bytes:
    sock.settimeout(TIMEOUT)
    return b"".join(iter(lambda: sock.recv(65536), b""))


def relayed(directory: Path, send: str, data: bytes) -> bytes:
    """Send `data` through HAProxy; give what the target received."""
    with ExitStack() as stack:
        target, front = stack.enter_context(haproxy(directory, send))
        client = stack.enter_context(socket.create_connection(front, TIMEOUT))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        connection = stack.enter_context(target.accept()[0])
        return read_to_end(connection)


@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize("ends", ENDS)
def test_addresses_pass_through_haproxy_from_our_line_to_its_header(
    tmp_path: Path, ends: tuple[Endpoint, Endpoint], send: str
) -> None:
    received = relayed(tmp_path, send, build_v1(*ends) + b"hello")

    header = parse(received)
    assert header == Header(*ends, len(received) - len(b"hello"))


@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize("ends", ENDS)
def test_addresses_pass_through_haproxy_from_our_header_to_its(
    tmp_path: Path, ends: tuple[Endpoint, Endpoint], send: str
) -> None:
    ours = build_v2(*ends, alpn="h2", authority="a.example", tls=FACTS)
    received = relayed(tmp_path, send, ours + b"hello")

    header = parse(received)
    assert header == Header(*ends, len(received) - len(b"hello"))
    assert (b"a.example" in received) == ("authority" in send)


@pytest.mark.parametrize("header", [build_v1(None, None), build_v2(None, None, tls=FACTS)])
def test_haproxy_takes_a_client_without_an_address_for_its_peer(
    tmp_path: Path, header: bytes
) -> None:
    received = relayed(tmp_path, "send-proxy-v2", header + b"hello")

    parsed = parse(received)
    assert parsed is not None
    assert parsed.source is not None
    assert parsed.source[0] == "127.0.0.1"
    assert received[parsed.length :] == b"hello"


def test_haproxy_finds_our_checksum_wrong_when_it_is(tmp_path: Path) -> None:
    header = bytearray(build_v2(CLIENT, LISTENER, authority="a.example"))
    header[-1] ^= 1

    with ExitStack() as stack:
        _, front = stack.enter_context(haproxy(tmp_path, "send-proxy-v2"))
        client = stack.enter_context(socket.create_connection(front, TIMEOUT))
        client.sendall(header + b"hello")
        try:
            answer = read_to_end(client)
        except ConnectionResetError:
            answer = b""

    assert not answer
