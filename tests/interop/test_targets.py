"""Where the relay connects to: by family and listener, and when it cannot."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from harness.backends import Backend
from harness.clients import connect, echoes, trusting
from harness.homes import TIMEOUT
from harness.instance import wait_for
from harness.processes import descriptors
from harness.streams import memory_client
from harness.target import target_of

if TYPE_CHECKING:
    from conftest import Certificates, Serve
    from harness.instance import Instance

VERSIONS: Final = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def assert_unreachable(
    handfast: Instance, certificates: Certificates, version: ssl.TLSVersion
) -> dict[str, str]:
    """Check that the client gets internal_error; give the event about the target."""
    with (
        memory_client(handfast.port(), certificates.ca, version) as client,
        pytest.raises(ssl.SSLError, match=r"(?i)internal.error"),
    ):
        client.read()
    event = handfast.wait("proxy", subevent="server_connect")
    assert event["level"] == "WARN"
    assert handfast.wait("proxy", subevent="client_disconnect")["error_msg"] == event["error_msg"]
    assert not handfast.events("proxy", subevent="server_disconnect")
    return event


@pytest.mark.parametrize("version", VERSIONS)
def test_a_refused_connect_is_told_to_client_and_log(
    serve: Serve, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    with socket.socket() as bound:  # bound but not listening: nobody else gets the port
        bound.bind(("127.0.0.1", 0))
        handfast = serve(target_of(bound))
        event = assert_unreachable(handfast, certificates, version)
        port = bound.getsockname()[1]

    assert event["error_msg"] == f"cannot connect to 127.0.0.1 port {port}"
    assert event["error_desc"] == "Connection refused"


def test_a_name_that_does_not_resolve_is_told_to_client_and_log(
    serve: Serve, certificates: Certificates
) -> None:
    handfast = serve("tcp://nonexistent.invalid:80")
    event = assert_unreachable(handfast, certificates, VERSIONS[1])

    assert event["error_msg"] == "cannot resolve nonexistent.invalid"
    assert event["error_desc"]


def test_a_unix_target_that_is_not_there_is_told_to_client_and_log(
    serve: Serve, certificates: Certificates, public_path: Path
) -> None:
    handfast = serve(f"unix:{public_path}/nobody")
    event = assert_unreachable(handfast, certificates, VERSIONS[1])

    assert event["error_msg"] == f"cannot connect to {public_path}/nobody"
    assert event["error_desc"] == "No such file or directory"


def test_a_target_that_does_not_answer_is_given_up_after_the_connect_timeout(
    serve: Serve, certificates: Certificates
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first:
        first.connect(full.getsockname())  # the one place there is
        handfast = serve(target_of(full), extra="connect-timeout: 300ms")
        relays = handfast.pids("relay").values()
        before = [descriptors(pid) for pid in relays]
        event = assert_unreachable(handfast, certificates, VERSIONS[1])
        wait_for(
            lambda: [descriptors(pid) for pid in relays] == before, "its attempt is given up too"
        )

    assert event["error_msg"] == "no connection after 0.3 s"
    assert 300 <= float(event["duration_ms"]) < 1500


def test_ipv6_listens_and_is_a_target(serve: Serve, certificates: Certificates) -> None:
    with Backend(family=socket.AF_INET6, address=("::1", 0)) as backend:
        handfast = serve(f"tcp://[::1]:{backend.port}", listen="[::1]:0")
        with (
            socket.create_connection(("::1", handfast.port()), TIMEOUT) as raw,
            trusting(certificates.ca).wrap_socket(raw, server_hostname="::1") as client,
        ):
            assert echoes(client)
            client.unwrap().close()

        event = handfast.wait("proxy", subevent="client_disconnect")
        assert (event["client_ip"], event["listen_ip"], event["server_ip"]) == ("::1",) * 3
        assert event["server_port"] == str(backend.port)


def test_unix_sockets_listen_and_are_targets(
    serve: Serve, certificates: Certificates, public_path: Path
) -> None:
    inside, outside = f"{public_path}/inside", f"{public_path}/outside"
    with Backend(family=socket.AF_UNIX, address=inside):
        Path(inside).chmod(0o666)  # for `user`, which is not the owner
        handfast = serve(f"unix:{inside}", listen=f"unix:{outside}")
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(TIMEOUT)
            raw.connect(outside)
            context = trusting(certificates.ca)
            with context.wrap_socket(raw, server_hostname="localhost") as client:
                assert echoes(client)
                client.unwrap().close()

        event = handfast.wait("proxy", subevent="client_disconnect")
        assert (event["listen_ip"], event["server_ip"]) == (f"unix:{outside}", f"unix:{inside}")
        assert "listen_port" not in event
        assert "error_msg" not in event


def test_a_target_is_found_by_name_in_whichever_family_it_listens(
    serve: Serve, backend: Backend, certificates: Certificates
) -> None:
    handfast = serve(f"tcp://localhost:{backend.port}")
    with connect(handfast.port(), trusting(certificates.ca)) as client:
        assert echoes(client)

    assert handfast.wait("proxy", subevent="server_connect")["server_ip"] == "127.0.0.1"


def test_each_listener_leads_to_its_own_target(
    serve: Serve, backend: Backend, certificates: Certificates
) -> None:
    def name(text: bytes) -> Backend:
        return Backend(lambda connection: connection.sendall(text))

    with name(b"first") as first, name(b"second") as second:
        more = (
            f"  - listen: '127.0.0.1:0'\n    target: '{second.target}'\n    certificates:\n"
            f"      - {{chain: {certificates.rsa_chain}, key: {certificates.rsa_key}}}"
        )
        handfast = serve(first.target, listener=more)
        said = []
        for number in range(2):
            with connect(handfast.port(number), trusting(certificates.ca)) as client:
                said.append(client.recv(100))

    assert said == [b"first", b"second"]
