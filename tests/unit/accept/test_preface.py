"""What hostile hellos come to where some clients are passed through by the name they ask for."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handfast.accept.preface import Preface
from handfast.config import Route, Service, Target, TcpAddress
from handfast.handover.message import MAX_MESSAGE, Handover, Passthrough
from handfast.policy.routes import Routes
from handfast.tls.handshake import MAX_HANDSHAKE, HandshakeError, Outcome
from handfast.tls.session import Peer
from unit.handover.encoding import encode

READ = 1 << 15
SERVICE = Service(targets=(Target(address=TcpAddress(host="192.0.2.1", port=1)),))


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!HH", kind, len(body)) + body


def server_name(*names: bytes) -> bytes:
    entries = b"".join(b"\0" + struct.pack("!H", len(name)) + name for name in names)
    return extension(0, struct.pack("!H", len(entries)) + entries)


def hello(extensions: bytes, behind: bytes = b"") -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    body += struct.pack("!H", len(extensions)) + extensions + behind
    return b"\x01" + len(body).to_bytes(3, "big") + body


def records(message: bytes, size: int = 1 << 14) -> bytes:
    pieces = [message[i : i + size] for i in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(each)) + each for each in pieces)


def preface_for(*sni: str) -> Preface:
    routes = Routes((Route(sni=sni, passthrough=True, service=SERVICE),))
    return Preface(headed=False, routes=routes, alpn=())


def feed(preface: Preface, data: bytes) -> bool:
    """Feed as an acceptor does, one read at a time, until it is known what it is."""
    return any(preface.feed(data[i : i + READ]) for i in range(0, len(data), READ))


def test_a_name_is_passed_through_in_any_case_and_with_the_dot_of_the_root() -> None:
    preface = preface_for("db.example.com")

    assert feed(preface, records(hello(server_name(b"DB.Example.com."))))
    assert preface.route is not None


@pytest.mark.parametrize(
    "message",
    [
        hello(server_name(b"db.example.com") + server_name(b"admin.example.com")),
        hello(server_name(b"admin.example.com") + server_name(b"db.example.com")),
        hello(server_name(b"db.example.com", b"admin.example.com")),
        hello(server_name(b"db.example.com"), behind=server_name(b"admin.example.com")),
    ],
    ids=["admin last", "admin first", "one list of two", "behind the extensions"],
)
@pytest.mark.parametrize("sni", [("db.example.com",), ()], ids=["a name's route", "every name's"])
def test_a_hello_that_can_be_read_in_two_ways_is_passed_to_nobody(
    message: bytes, sni: tuple[str, ...]
) -> None:
    preface = preface_for(*sni)

    assert feed(preface, records(message))
    assert preface.route is None


def test_a_name_that_no_host_can_have_is_passed_to_nobody() -> None:
    preface = preface_for()

    assert feed(preface, records(hello(server_name(b"\xff" * 60_000))))
    assert preface.route is None


def test_a_hello_in_tiny_records_takes_no_more_memory_than_a_whole_one() -> None:
    preface = preface_for()
    message = hello(server_name(b"db.example.com") + extension(21, bytes(60_000)))

    with pytest.raises(HandshakeError) as caught:
        feed(preface, records(message, 1))

    assert caught.value.token == "handshake_too_long"
    assert len(preface.rest) <= MAX_HANDSHAKE + READ


def test_the_longest_hello_that_is_passed_through_fits_into_a_hand_over() -> None:
    preface = preface_for()
    padding = b"".join(extension(kind, bytes(1 << 14)) for kind in (1001, 1002, 1003))
    message = hello(server_name(b"\xff" * 255) + padding)
    early = bytes(MAX_HANDSHAKE + READ - len(message) - 100)

    assert feed(preface, records(message) + early[:READ])
    through = Passthrough(Peer("192.0.2.1", 1, preface.name), bytes(preface.rest))
    assert preface.route is not None
    assert len(encode(Handover(1, 1, 0.0, through))) <= MAX_MESSAGE


V1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes.fromhex("c0000201c6336401126701bb")
HELLO = records(hello(server_name(b"db.example.com")))
ROUTES = Routes((Route(sni=("db.example.com",), passthrough=True, service=SERVICE),))


def outcome(pieces: list[bytes], *, headed: bool, routed: bool) -> object:
    """What becomes of bytes that come in these pieces: an error, nothing yet, or what is known."""
    preface = Preface(headed=headed, routes=ROUTES if routed else None, alpn=())
    fed = b""
    for piece in pieces:
        fed += piece
        try:
            known = preface.feed(piece)
        except HandshakeError as error:
            return error.token
        if known:
            length = preface.header.length if preface.header else 0
            assert bytes(preface.rest) == fed[length:]
            return preface.header, preface.route is not None, preface.name
    return None


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("routed", [False, True])
def test_a_header_and_a_hello_are_found_byte_by_byte(header: bytes, routed: bool) -> None:
    data = header + HELLO
    preface = Preface(headed=True, routes=ROUTES if routed else None, alpn=())

    known = [preface.feed(data[place : place + 1]) for place in range(len(data))]

    assert preface.header is not None
    assert (preface.header.source, preface.header.destination) == (
        ("192.0.2.1", 4711), ("198.51.100.1", 443),
    )  # fmt: skip
    assert known.index(True) == (len(data) if routed else len(header)) - 1
    assert bytes(preface.rest) == HELLO
    assert preface.name == ("db.example.com" if routed else "")


def test_what_begins_no_header_is_refused_at_its_first_wrong_byte() -> None:
    preface = Preface(headed=True, routes=None, alpn=())

    assert not preface.feed(b"PRO")
    with pytest.raises(HandshakeError) as caught:
        preface.feed(b"B")

    assert caught.value.token == "bad_proxy_header"
    assert caught.value.outcome is Outcome.DENIED


def test_a_header_is_read_once() -> None:
    """A second one is the client's own words, and no TLS."""
    preface = Preface(headed=True, routes=None, alpn=())
    assert preface.feed(V1 + V1)
    assert bytes(preface.rest) == V1


def test_what_would_be_negotiated_decides_between_routes() -> None:
    routes = Routes((Route(alpn=("h2",), passthrough=True, service=SERVICE),))
    names = b"\x08http/1.1\x02h2"
    message = records(hello(extension(16, struct.pack("!H", len(names)) + names)))
    found = []
    for ours in (("h2", "http/1.1"), ("http/1.1", "h2"), ()):
        preface = Preface(headed=False, routes=routes, alpn=ours)
        assert preface.feed(message)
        found.append(preface.route is not None)

    assert found == [True, False, False]


@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.tuples(st.sampled_from([V1, V2, b""]), st.binary(max_size=100)).map(b"".join),
        st.tuples(
            st.sampled_from([V1, V2, HELLO, V1 + HELLO, V2 + HELLO]),
            st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3),
        ).map(lambda each: damaged(*each)),
    ),
    cuts=st.lists(st.integers(0, 300), max_size=5),
    headed=st.booleans(),
    routed=st.booleans(),
)
@example(data=b"\x80\x00\x01", cuts=[], headed=False, routed=True)  # SSLv2
@example(data=b"\x80\x00\x02", cuts=[], headed=False, routed=True)
def test_bytes_mean_the_same_in_whatever_pieces_they_come(
    data: bytes, cuts: list[int], headed: bool, routed: bool
) -> None:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(places)]
    single = [data[place : place + 1] for place in range(len(data))]

    in_pieces = outcome(pieces, headed=headed, routed=routed)

    assert in_pieces == outcome(single, headed=headed, routed=routed)


def damaged(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(data)] = value
    return bytes(changed)
