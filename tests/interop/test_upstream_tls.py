"""Targets that speak TLS, with us or with the client itself; the target is the standard library."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from harness.backends import Backend, echo
from harness.clients import connect, echoes, trusting
from harness.instance import Instance
from harness.streams import memory_client, random_bytes, sha256

if TYPE_CHECKING:
    from conftest import Certificates

VERSIONS: Final = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def speaking_tls(
    certificates: Certificates, version: ssl.TLSVersion, serve: Callable[[ssl.SSLSocket], None]
) -> Callable[[socket.socket], None]:
    """What a Backend serves with, over TLS of one version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.chain, certificates.key)
    context.minimum_version = context.maximum_version = version

    def run(raw: socket.socket) -> None:
        with context.wrap_socket(raw, server_side=True) as secured:
            serve(secured)

    return run


def handfast(directory: Path, certificates: Certificates, behind: str) -> Instance:
    """Start with one listener; `behind` is what is behind it, in YAML indented by four."""
    config = directory / "handfast.yaml"
    config.write_text(
        f"nworkers: 1\ncontrol: {directory}/control.sock\nlisteners:\n  - listen: 127.0.0.1:0\n"
        f"    certificates:\n      - chain: {certificates.chain}\n        key: {certificates.key}\n"
        f"{behind}\n"
    )
    return Instance(config)


def secured(certificates: Certificates, port: int, name: str = "localhost") -> str:
    return (
        f"    targets:\n      - address: tcp://127.0.0.1:{port}\n"
        f"        tls: {{server-name: {name}, trusted-certs: [{certificates.ca}]}}"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_megabytes_pass_between_two_tls_sessions(
    tmp_path: Path, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    up, down = random_bytes(5_000_000), random_bytes(5_000_000)
    received: list[str] = []

    def exchange(target: ssl.SSLSocket) -> None:
        data = b""
        while len(data) < len(up):
            data += target.recv(1 << 16)
        received.append(sha256(data))
        target.sendall(down)
        target.unwrap()

    with (
        Backend(speaking_tls(certificates, version, exchange)) as backend,
        handfast(tmp_path, certificates, secured(certificates, backend.port)) as instance,
        memory_client(instance.port(), certificates.ca) as client,
    ):
        assert client.exchange(up, len(down)) == sha256(down)
        assert client.read() == b""
        client.close_write()
        ended = instance.wait("proxy", subevent="client_disconnect")
    assert received == [sha256(up)]
    assert (ended["bytes_in"], ended["bytes_out"]) == (str(len(up)), str(len(down)))
    assert "error_msg" not in ended
    assert not backend.errors


def test_a_target_for_another_name_gets_no_byte_of_the_client(
    tmp_path: Path, certificates: Certificates
) -> None:
    got: list[bytes] = []

    def listen(target: ssl.SSLSocket) -> None:
        got.append(target.recv(100))

    with (
        Backend(speaking_tls(certificates, ssl.TLSVersion.TLSv1_3, listen)) as backend,
        handfast(tmp_path, certificates, secured(certificates, backend.port, "other")) as instance,
        connect(instance.port(), trusting(certificates.ca)) as client,
    ):
        client.sendall(b"a secret")
        with pytest.raises(ssl.SSLError, match="internal error"):
            client.recv(100)
        event = instance.wait("proxy", subevent="server_connect")
    assert "the certificate is not for other" in event["error_desc"]
    assert not got


def test_a_passed_through_client_does_its_handshake_with_the_target(
    tmp_path: Path, certificates: Certificates
) -> None:
    def answer(target: ssl.SSLSocket) -> None:
        echo(target)
        target.unwrap()

    route = (
        "    routes:\n      - {sni: localhost, passthrough: true, target: '%s'}\n    target: '%s'"
    )
    with Backend() as plain:
        serve = speaking_tls(certificates, ssl.TLSVersion.TLSv1_3, answer)
        with (
            Backend(serve) as target,
            handfast(tmp_path, certificates, route % (target.target, plain.target)) as instance,
            connect(instance.port(), trusting(certificates.ca)) as client,
        ):
            assert echoes(client)
            client.unwrap().close()
            instance.wait("proxy", subevent="server_disconnect")
            event = instance.wait("proxy", subevent="client_connect")
            assert event["sni"] == "localhost"
            assert "tls_version" not in event
            assert not instance.events("auth")
    assert not target.errors
