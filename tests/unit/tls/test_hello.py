from __future__ import annotations

import contextlib
import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from conftest import Certificates
from handfast.errors import PeerError
from handfast.tls.alerts import Alert
from handfast.tls.hello import (
    ClientHello,
    first_message,
    parse_client_hello,
    parse_server_hello,
)
from handfast.tls.keys import SUITES, TLS12, TLS13
from unit.tls.engines import SUITE_NAMES, Client, server_context, shake_hands


def openssl_hello(**how: object) -> bytes:
    return Client(**how).feed(b"")  # type: ignore[arg-type]  # the same keywords


def stdlib_hello(name: str | None, alpn: list[str]) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_a_hello_of_openssl_is_read() -> None:
    hello = parse_client_hello(
        first_message(openssl_hello(sni=b"www.example.org", alpn=(b"h2", b"http/1.1")))
    )

    assert hello.sni == b"www.example.org"
    assert hello.alpn == (b"h2", b"http/1.1")
    assert set(hello.versions) >= {TLS12, TLS13}
    assert set(SUITES) <= set(hello.suites)


def test_a_hello_of_the_standard_library_is_read() -> None:
    hello = parse_client_hello(first_message(stdlib_hello("host.example", ["imap"])))

    assert (hello.sni, hello.alpn) == (b"host.example", (b"imap",))
    assert TLS13 in hello.versions


def test_what_was_not_offered_is_empty() -> None:
    hello = parse_client_hello(first_message(stdlib_hello(None, [])))

    assert (hello.sni, hello.alpn) == (b"", ())


def test_a_hello_of_tls12_tells_its_one_version() -> None:
    hello = parse_client_hello(first_message(openssl_hello(version=SSL.TLS1_2_VERSION)))

    assert hello.versions == (TLS12,)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_a_server_hello_tells_what_was_chosen(suite: object, certificates: Certificates) -> None:
    name = suite.name  # type: ignore[attr-defined]  # parametrize knows no types
    code = next(code for code, each in SUITES.items() if each.name == name)
    identity = certificates.rsa_server if "_RSA_" in name else certificates.server
    client = Client(suites=SUITE_NAMES[code])

    _, flight = shake_hands(client, SSL.Connection(server_context(identity)))
    hello = parse_server_hello(first_message(flight))

    assert (hello.version, hello.suite) == (SUITES[code].version, code)
    assert not hello.resumed


def test_a_server_hello_shows_a_resumption_of_tls13(certificates: Certificates) -> None:
    context = server_context(certificates.server)
    first = Client(version=SSL.TLS1_3_VERSION)
    shake_hands(first, SSL.Connection(context))
    second = Client(context=first.context, session=first.connection.get_session())

    _, flight = shake_hands(second, SSL.Connection(context))

    assert parse_server_hello(first_message(flight)).resumed


def in_records(message: bytes, size: int) -> bytes:
    return b"".join(
        b"\x16\x03\x01" + len(message[i : i + size]).to_bytes(2, "big") + message[i : i + size]
        for i in range(0, len(message), size)
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
def test_a_fragmented_message_is_joined(size: int) -> None:
    message = openssl_hello(sni=b"a.example")[5:]

    assert first_message(in_records(message, size)) == message


def test_what_is_behind_the_first_message_is_left_out() -> None:
    message = openssl_hello()[5:]

    assert first_message(in_records(message + b"\x0e\x00\x00\x00", 5000)) == message
    assert first_message(in_records(message, 5000) + b"\x14\x03\x03\x00\x01\x01") == message


def test_as_much_as_is_there_is_given() -> None:
    message = openssl_hello()[5:]

    assert first_message(in_records(message, 100)[:50]) == message[:45]


@pytest.mark.parametrize("data", [b"", b"\x16", b"\x15\x03\x03\x00\x02\x02\x28", b"GET / HTTP/1.1"])
def test_what_starts_otherwise_has_no_message(data: bytes) -> None:
    assert first_message(data) == b""


def test_every_truncation_is_refused() -> None:
    message = openssl_hello(sni=b"a.example", alpn=(b"h2",))[5:]

    for length in range(len(message)):
        with pytest.raises(PeerError) as caught:
            parse_client_hello(message[:length])
        assert caught.value.alert == Alert.DECODE_ERROR


def test_another_message_is_refused() -> None:
    message = openssl_hello()[5:]

    with pytest.raises(PeerError) as caught:
        parse_server_hello(message)

    assert caught.value.alert == Alert.UNEXPECTED_MESSAGE


def hello_of(extensions: bytes) -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00" + extensions
    return b"\x01" + len(body).to_bytes(3, "big") + body


def test_a_hello_without_extensions_is_read() -> None:
    assert parse_client_hello(hello_of(b"")) == ClientHello((TLS12,), (0x1301,))


def test_a_name_of_another_type_is_passed_over() -> None:
    names = b"\x01\x00\x03abc" + b"\x00\x00\x04host"
    body = len(names).to_bytes(2, "big") + names
    extension = b"\x00\x00" + len(body).to_bytes(2, "big") + body

    hello = parse_client_hello(hello_of(len(extension).to_bytes(2, "big") + extension))

    assert hello.sni == b"host"


def name_extension(*names: bytes) -> bytes:
    entries = b"".join(b"\x00" + len(name).to_bytes(2, "big") + name for name in names)
    body = len(entries).to_bytes(2, "big") + entries
    return b"\x00\x00" + len(body).to_bytes(2, "big") + body


def block(*extensions: bytes) -> bytes:
    joined = b"".join(extensions)
    return len(joined).to_bytes(2, "big") + joined


@pytest.mark.parametrize(
    ("extensions", "alert"),
    [
        (block(name_extension(b"a"), name_extension(b"b")), Alert.ILLEGAL_PARAMETER),
        (block(name_extension(b"a", b"b")), Alert.ILLEGAL_PARAMETER),
        (block(name_extension(b"a")) + block(name_extension(b"b")), Alert.DECODE_ERROR),
    ],
    ids=["two extensions", "two names", "two blocks"],
)
def test_what_others_may_read_in_another_way_is_refused(extensions: bytes, alert: Alert) -> None:
    with pytest.raises(PeerError) as caught:
        parse_client_hello(hello_of(extensions))

    assert caught.value.alert == alert


@given(data=st.binary(max_size=300), kind=st.sampled_from([b"", b"\x01\x00", b"\x02\x00"]))
@settings(max_examples=200)
def test_any_bytes_give_a_hello_or_an_error(data: bytes, kind: bytes) -> None:
    for parse in (parse_client_hello, parse_server_hello):
        with contextlib.suppress(PeerError):
            parse(kind + data)
    first_message(data)
    first_message(b"\x16\x03\x01" + data)


@given(
    places=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=5),
    stdlib=st.booleans(),
    cut=st.integers(0, 2000),
)
@settings(max_examples=200, deadline=None)
def test_mutated_hellos_give_a_hello_or_an_error(
    places: list[tuple[int, int]], stdlib: bool, cut: int
) -> None:
    hello = bytearray(STDLIB_HELLO if stdlib else OPENSSL_HELLO)
    for place, value in places:
        hello[place % len(hello)] = value

    for data in (bytes(hello), bytes(hello[:cut])):
        message = first_message(data)
        assert len(message) <= len(data)
        with contextlib.suppress(PeerError):
            parse_client_hello(message)
        with contextlib.suppress(PeerError):
            parse_client_hello(data[5:])


OPENSSL_HELLO = openssl_hello(sni=b"www.example.org", alpn=(b"h2", b"http/1.1"))
STDLIB_HELLO = stdlib_hello("host.example", ["imap", "h2"])
