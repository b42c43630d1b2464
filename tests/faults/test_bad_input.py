"""What a hostile or broken client gets: an alert, one event that names the reason, nothing else.

One running instance meets every case, with a good connection open all the while. Behind each case
the log has no exception trace, and the number of descriptors is back where it was.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.backends import Backend
from harness.clients import connect, echoes, read_to_end, receive, trusting
from harness.instance import Instance, wait_for
from harness.processes import descriptors, run_handfast

if TYPE_CHECKING:
    from conftest import Certificates

UNEXPECTED_MESSAGE, RECORD_OVERFLOW, DECODE_ERROR, PROTOCOL_VERSION = 10, 22, 50, 70
HANDSHAKE_TIMEOUT = 0.6


class Met:
    """An instance under attack, and a good connection that it has to keep serving."""

    def __init__(self, running: Instance, good: ssl.SSLSocket, context: ssl.SSLContext) -> None:
        self.running = running
        self.port = running.port()
        self.context = context
        self._good = good
        self._workers = [pid for name, pid in running.pids().items() if "-" in name]
        self._descriptors = [descriptors(pid) for pid in self._workers]

    def dial(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def answer_to(self, *pieces: bytes) -> tuple[bytes, dict[str, str]]:
        """Write the pieces; give what comes back until the end, and the one event about it."""
        with self.dial() as sock:
            port = str(sock.getsockname()[1])
            for piece in pieces:
                try:
                    sock.sendall(piece)
                except (BrokenPipeError, ConnectionResetError):
                    break  # it was refused by what came before
            answer = read_to_end(sock)
        return answer, self.told(port)

    def told(self, port: str) -> dict[str, str]:
        """Wait for the event of a failed handshake; there must be no other about that client."""
        event = self.running.wait("auth", client_port=port)
        assert len(self.running.events(client_port=port)) == 1
        assert event["level"] == "INFO"
        assert event["client_ip"] == "127.0.0.1"
        return event

    def check(self) -> None:
        """Check that all is as it was before."""
        assert echoes(self._good)
        with connect(self.port, self.context) as fresh:
            assert echoes(fresh)
            fresh.unwrap().close()
        wait_for(
            lambda: [descriptors(pid) for pid in self._workers] == self._descriptors,
            "every descriptor is closed",
        )
        assert self.running.events("system_error") == []
        assert not self.running.events("worker", worker_state="dead")


@pytest.fixture(scope="module")
def instance(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Met]:
    directory = tmp_path_factory.mktemp("faults")
    config = directory / "handfast.yaml"
    with Backend() as backend:
        config.write_text(
            f"nworkers: 2\ncontrol: control.sock\nhandshake-timeout: {HANDSHAKE_TIMEOUT * 1000:g}\n"
            f"listeners:\n  - listen: 127.0.0.1:0\n    target: {backend.target}\n"
            f"    certificates: [{{chain: {certificates.chain}, key: {certificates.key}}}]\n"
        )
        context = trusting(certificates.ca)
        # Its end checks standard error for exception traces.
        with Instance(config) as running, connect(running.port(), context) as good:
            assert echoes(good)
            yield Met(running, good, context)
            good.unwrap().close()


@pytest.fixture
def met(instance: Met) -> Iterator[Met]:
    yield instance
    instance.check()


def alert(description: int) -> bytes:
    return bytes((21, 3, 3, 0, 2, 2, description))


def is_alert(answer: bytes, description: int) -> bool:
    """Tell whether an answer is one fatal alert, whatever its legacy version says."""
    return len(answer) == 7 and answer[0] == 21 and answer[5:] == bytes((2, description))


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!HH", kind, len(body)) + body


def server_name(name: bytes) -> bytes:
    entry = b"\0" + struct.pack("!H", len(name)) + name
    return extension(0, struct.pack("!H", len(entry)) + entry)


def client_hello(
    version: int = 0x0303,
    extensions: bytes = b"",
    suites: tuple[int, ...] = (0xC02B, 0xC02F, 0x002F),
) -> bytes:
    """Write a ClientHello handshake message (RFC 5246, section 7.4.1.2)."""
    listed = b"".join(struct.pack("!H", suite) for suite in suites)
    body = struct.pack("!H", version) + bytes(range(32)) + b"\0"
    body += struct.pack("!H", len(listed)) + listed + b"\x01\0"
    if extensions:
        body += struct.pack("!H", len(extensions)) + extensions
    return b"\x01" + len(body).to_bytes(3, "big") + body


def records(message: bytes, version: int = 0x0301, size: int = 1 << 14) -> bytes:
    """Cut a handshake message into plaintext records."""
    pieces = [message[i : i + size] for i in range(0, len(message), size)]
    return b"".join(struct.pack("!BHH", 22, version, len(each)) + each for each in pieces)


SSLV2_HELLO = b"\x80\x2e\x01\x00\x02" + b"\x00\x15\x00\x00\x00\x10" + bytes(36)


@pytest.mark.parametrize(
    ("sent", "expected", "reason"),
    [
        (b"\x00" * 64, UNEXPECTED_MESSAGE, "not_tls"),
        (b"\xff" * 4096, UNEXPECTED_MESSAGE, "not_tls"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", UNEXPECTED_MESSAGE, "not_tls"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", UNEXPECTED_MESSAGE, "http_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", UNEXPECTED_MESSAGE, "http_request"),
        (b"\x16\x03\x01\xff\xff" + bytes(0xFFFF), RECORD_OVERFLOW, "record_overflow"),
        (b"\x16\x03\x01\x00\x00" * 1000, UNEXPECTED_MESSAGE, "empty_record"),
        (b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\x03", DECODE_ERROR, "handshake_too_long"),
        (SSLV2_HELLO, PROTOCOL_VERSION, "unsupported_protocol"),
    ],
    ids=["zeros", "garbage", "ssh", "http", "http2", "record of 65535 bytes", "empty records",
         "a message of 16 MB", "SSLv2"],
)  # fmt: skip
def test_what_is_not_tls_gets_an_alert_and_one_event_with_the_reason(
    met: Met, sent: bytes, expected: int, reason: str
) -> None:
    answer, told = met.answer_to(sent)

    assert answer == alert(expected)
    assert (told["outcome"], told["reason"]) == ("denied", reason)
    assert told["alert"].endswith(" sent")
    assert told["error_msg"]


@pytest.mark.parametrize(
    ("version", "name"), [(0x0300, "SSLv3"), (0x0301, "TLSv1"), (0x0302, "TLSv1.1")]
)
def test_a_hello_of_an_old_version_is_refused_and_its_offer_is_told(
    met: Met, version: int, name: str
) -> None:
    extensions = server_name(b"old.example") if version > 0x0300 else b""

    answer, told = met.answer_to(records(client_hello(version, extensions), min(version, 0x0301)))

    assert is_alert(answer, PROTOCOL_VERSION)
    assert told["outcome"] == "denied"
    assert told["reason"] == "unsupported_protocol"
    assert told["alert"] == "protocol_version sent"
    assert told["offered_versions"].lower().startswith(name.lower()[:5])
    assert told.get("sni", "") == ("old.example" if extensions else "")


def test_a_hello_without_a_common_suite_is_a_handshake_failure(met: Met) -> None:
    hello = client_hello(extensions=server_name(b"weak.example"), suites=(0x0005, 0x000A))

    answer, told = met.answer_to(records(hello))

    assert is_alert(answer, 40)
    assert (told["reason"], told["sni"]) == ("no_shared_cipher", "weak.example")
    assert told["offered_versions"] == "TLSv1.2"


@pytest.mark.parametrize(
    "sent", [b"\x16", b"\x16\x03\x01\x02\x00\x01", records(client_hello())[:-1]]
)
def test_half_a_record_and_silence_ends_at_the_deadline(met: Met, sent: bytes) -> None:
    answer, told = met.answer_to(sent)

    assert answer == b""
    assert (told["outcome"], told["reason"]) == ("failed", "timeout")
    assert HANDSHAKE_TIMEOUT * 1000 <= float(told["duration_ms"]) < HANDSHAKE_TIMEOUT * 1000 + 2000


def test_a_connection_without_a_byte_is_told_as_such(met: Met) -> None:
    with met.dial() as sock:
        port = str(sock.getsockname()[1])

    told = met.told(port)
    assert (told["outcome"], told["reason"]) == ("failed", "eof")
    assert told["error_msg"] == "closed before the first byte"


def test_a_fin_in_the_handshake_is_told_with_what_was_offered(met: Met) -> None:
    hello = real_hello(met)
    with met.dial() as sock:
        port = str(sock.getsockname()[1])
        sock.sendall(hello)
        assert receive(sock, 1)
        sock.shutdown(socket.SHUT_WR)
        read_to_end(sock)

    told = met.told(port)
    assert (told["outcome"], told["reason"]) == ("failed", "eof")
    assert (told["sni"], "TLSv1.3" in told["offered_versions"]) == ("localhost", True)


def test_a_reset_in_the_handshake_is_told_as_such(met: Met) -> None:
    hello = real_hello(met)
    with met.dial() as sock:
        port = str(sock.getsockname()[1])
        sock.sendall(hello)
        assert receive(sock, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    told = met.told(port)
    assert (told["outcome"], told["reason"]) == ("failed", "reset")
    assert told["sni"] == "localhost"


def real_hello(met: Met) -> bytes:
    """Give the first flight of a real client."""
    outgoing = ssl.MemoryBIO()
    client = met.context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def in_small_records(data: bytes) -> bytes:
    """Cut the records of a first flight into records of one byte each."""
    return records(data[5:], size=1)


def in_writes_of_one_byte(hello: bytes) -> list[bytes]:
    return [hello[i : i + 1] for i in range(len(hello))]


def in_records_of_one_byte(hello: bytes) -> list[bytes]:
    return [in_small_records(hello)]


def in_records_of_a_hundred_bytes_one_by_one(hello: bytes) -> list[bytes]:
    return [records(hello[5 + i : 105 + i]) for i in range(0, len(hello) - 5, 100)]


@pytest.mark.parametrize(
    "cut",
    [in_writes_of_one_byte, in_records_of_one_byte, in_records_of_a_hundred_bytes_one_by_one],
)
def test_a_hello_in_pieces_succeeds(met: Met, cut: Callable[[bytes], list[bytes]]) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = met.context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()

    with met.dial() as sock:
        port = str(sock.getsockname()[1])
        for piece in cut(outgoing.read()):
            sock.sendall(piece)
        complete(client, incoming, sock)
        sock.sendall(outgoing.read())
        granted = met.running.wait("auth", client_port=port)

    assert granted["outcome"] == "granted"
    met.running.wait("proxy", subevent="client_disconnect", client_port=port)


def complete(client: ssl.SSLObject, incoming: ssl.MemoryBIO, sock: socket.socket) -> None:
    """Finish the client's side of a handshake, as far as reading goes."""
    while True:
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            data = sock.recv(16384)
            assert data, "closed in the handshake"
            incoming.write(data)
        else:
            return


@pytest.mark.parametrize(
    "name",
    [
        b'"quotes" and \\backslashes\\',
        b"lines\r\nlevel=FATAL event=forged\n",
        b"nul\0 and bell\a",
        b"\xff\xfe not UTF-8 \xc3",
        "snowman ☃".encode(),
        b"key=value outcome=granted",
    ],
)
def test_whatever_a_server_name_holds_comes_back_out_of_the_log_exactly(
    met: Met, name: bytes
) -> None:
    hello = client_hello(version=0x0301, extensions=server_name(name))

    _, told = met.answer_to(records(hello))

    assert told["sni"].encode("utf-8", "surrogateescape") == name
    assert told["outcome"] == "denied"
    assert not met.running.events("forged")


def test_a_server_name_of_10_kilobytes_is_refused_and_logged_with_a_mark(met: Met) -> None:
    hello = client_hello(version=0x0303, extensions=server_name(b"a" * 10_240))

    answer, told = met.answer_to(records(hello))

    assert answer[:1] == b"\x15"
    assert told["sni"] == "a" * 256 + "…+9984"
    assert told["truncated"] == "256"


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.one_of(
        st.binary(min_size=6, max_size=2000),
        st.binary(max_size=300).map(
            lambda body: b"\x16\x03\x01" + struct.pack("!H", len(body) or 1) + (body or b"\0")
        ),
        st.binary(max_size=300).map(
            lambda body: records(b"\x01" + len(body).to_bytes(3, "big") + body)
        ),
    )
)
def test_random_bytes_give_one_event_each_and_never_a_session(met: Met, data: bytes) -> None:
    with met.dial() as sock:
        port = str(sock.getsockname()[1])
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = read_to_end(sock)

    told = met.told(port)
    assert answer == b"" or answer[0] == 21
    assert told["outcome"] in {"denied", "failed"}
    assert told["reason"]


def test_an_occupied_port_is_named_with_its_holder(
    certificates: Certificates, tmp_path: Path
) -> None:
    config = tmp_path / "handfast.yaml"
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        config.write_text(
            f"control: control.sock\nlisten-ip: 127.0.0.1\nlisten-port: {port}\n"
            f"target-ip: 127.0.0.1\ntarget-port: 9\n"
            f"cert-chain: {certificates.chain}\nservkey: {certificates.key}\n"
        )

        done = run_handfast("serve", "-c", str(config))

    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert f"127.0.0.1:{port} is held by " in done.stderr
    assert f"(pid {os.getpid()})" in done.stderr
    assert "Traceback" not in done.stderr
    assert "level=FATAL event=system_error" in done.stdout
    assert not (tmp_path / "control.sock").exists()


def test_a_target_that_cannot_be_resolved_is_a_warning_and_an_alert_for_the_client(
    certificates: Certificates, tmp_path: Path
) -> None:
    config = tmp_path / "handfast.yaml"
    config.write_text(
        "control: control.sock\nnworkers: 1\nlisten-ip: 127.0.0.1\nlisten-port: 0\n"
        "target-ip: nowhere.invalid\ntarget-port: 9\n"
        f"cert-chain: {certificates.chain}\nservkey: {certificates.key}\n"
    )

    with Instance(config) as running:
        with (
            connect(running.port(), trusting(certificates.ca)) as client,
            pytest.raises(ssl.SSLError, match=r"(?i)internal.error"),
        ):
            client.recv(1)
        told = running.wait("proxy", subevent="server_connect")

    assert told["level"] == "WARN"
    assert told["error_msg"] == "cannot resolve nowhere.invalid"
    assert told["error_desc"]
