"""What goes around pyOpenSSL does what pyOpenSSL does."""

from __future__ import annotations

import pytest
from OpenSSL import SSL

from handfast.tls.openssl_library import drive, keep_secrets, secret_lines, take_output
from harness.pki import issue
from unit.tls.engines import Client, server_context

SERVER = issue("server", issue("test root", ca=True))


def accepting(context: SSL.Context) -> SSL.Connection:
    connection = SSL.Connection(context)
    connection.set_accept_state()
    return connection


def test_it_drives_a_handshake_to_its_end_and_keeps_its_traffic_secrets() -> None:
    secret_lines.clear()
    context = server_context(SERVER)
    keep_secrets(context)
    connection = accepting(context)
    client = Client()

    assert not drive(connection, client.feed(b""))
    assert drive(connection, client.feed(take_output(connection)))

    client.feed(take_output(connection))
    kinds = [line.partition(b" ")[0] for line in secret_lines]
    assert kinds == [b"SERVER_TRAFFIC_SECRET_0", b"CLIENT_TRAFFIC_SECRET_0"]
    assert client.done


def test_output_of_any_length_is_taken_whole_and_once() -> None:
    connection = SSL.Connection(server_context(SERVER))
    for length in (0, 1, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, 100_000):
        text = bytes(range(256)) * (length // 256 + 1)
        _put(connection, text[:length])

        assert take_output(connection) == text[:length]
        assert take_output(connection) == b""


def _put(connection: SSL.Connection, data: bytes) -> None:
    """Lay bytes where OpenSSL lays its output."""
    connection._into_ssl, connection._from_ssl = connection._from_ssl, connection._into_ssl
    if data:
        connection.bio_write(data)
    connection._into_ssl, connection._from_ssl = connection._from_ssl, connection._into_ssl


def test_a_handshake_that_fails_raises_what_openssl_says() -> None:
    with pytest.raises(SSL.Error, match="http request"):
        drive(accepting(server_context(SERVER)), b"GET / HTTP/1.0\r\n\r\n")


def test_an_error_in_a_callback_comes_out() -> None:
    def refuse(_connection: SSL.Connection, _offered: list[bytes]) -> bytes:
        raise LookupError("none of these")

    context = server_context(SERVER)
    context.set_alpn_select_callback(refuse)

    with pytest.raises(LookupError):
        drive(accepting(context), Client(alpn=(b"h2",)).feed(b""))
