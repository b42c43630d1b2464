from __future__ import annotations

import json
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from handfast.errors import HandfastError
from handfast.handover.application import MAX_MESSAGE, Facts, Offer, decode, encode
from handfast.tls.session import Direction, Peer, Received, Session
from unit.tls.sessions import AES128, AES128_12, sessions
from unit.tls.test_session import any_sessions, texts

HEAD = struct.Struct("!8sHHIII")
CHAIN = (b"leaf", b"issuer")

facts = st.builds(
    Facts,
    client_ip=texts,
    client_port=st.integers(0, 65535),
    listen_ip=texts,
    sni=texts,
    alpn=texts,
    resumed=st.booleans(),
    certificates=st.lists(st.binary(max_size=60), max_size=3).map(tuple),
)


def own(session: Session) -> Session:
    """A session that could be on its way: no ciphertext is beside the kernel's directions."""
    return replace(
        session,
        unread=b"" if session.read.in_kernel else session.unread,
        unsent=b"" if session.write.in_kernel else session.unsent,
    )


@given(facts=facts, session=any_sessions().map(own), data=st.binary(max_size=100))
def test_an_offer_comes_back_as_it_was(facts: Facts, session: Session, data: bytes) -> None:
    back = decode(bytes(encode(Offer(facts, session, data))))

    assert back == Offer(facts, replace(session, peer=Peer()), data)


def test_the_layout_is_the_documented_one() -> None:
    session = replace(sessions(AES128)[0], read=Direction(bytearray(), closed=True, in_kernel=True))
    about = Facts(client_ip="192.0.2.1", client_port=4433, certificates=CHAIN)

    message = bytes(encode(Offer(about, session, b"hello")))

    magic, version, flags, length, count, rest = HEAD.unpack_from(message)
    assert (magic, version, flags, count) == (b"handfast", 1, 1 | 4, 5)
    assert json.loads(message[24 : 24 + length]) == {
        "client_ip": "192.0.2.1",
        "client_port": 4433,
        "certificates": ["bGVhZg==", "aXNzdWVy"],
    }
    assert message[24 + length : 29 + length] == b"hello"
    assert len(message) == 29 + length + rest


def test_the_session_is_the_documented_array() -> None:
    session = replace(
        sessions(AES128_12, unread=b"unread", nonce=7)[0],
        unsent=b"unsent",
        received=Received(1, b"part", 2, 3, True, False),
        bytes_out=4,
    )
    message = bytes(encode(Offer(Facts(), session)))
    *_, length, count, rest = HEAD.unpack_from(message)

    assert len(message) == 24 + length + count + rest
    assert msgspec.msgpack.decode(message[-rest:]) == [
        0,
        0xC02F,
        [bytes(session.read.secret), 0, 7, False, False, 0],
        [bytes(session.write.secret), 0, 7, False, False, 0],
        msgspec.msgpack.decode(msgspec.msgpack.encode(Peer())),
        b"unread",
        b"unsent",
        [1, b"part", 2, 3, True, False],
        4,
    ]


@given(noise=st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(HandfastError):
        decode(noise)


@given(data=st.data())
def test_a_changed_message_is_refused_or_understood_and_nothing_else(data: st.DataObject) -> None:
    message = encode(Offer(Facts(sni="a.example"), sessions(AES128)[0], b"hello"))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    message = message[: data.draw(st.integers(0, len(message)))]

    try:
        decode(message)
    except HandfastError:
        pass


@pytest.mark.parametrize(
    ("place", "value"), [(9, 2), (11, 8), (11, 1), (10, 1)], ids=["version", "flag", "home", "high"]
)
def test_what_this_version_does_not_know_is_refused(place: int, value: int) -> None:
    message = encode(Offer(Facts(), sessions(AES128)[0]))
    message[place] = value

    with pytest.raises(HandfastError):
        decode(message)


def test_keys_of_a_later_version_are_no_obstacle() -> None:
    message = bytes(encode(Offer(Facts(sni="a.example"), sessions(AES128)[0])))
    *start, length, count, rest = HEAD.unpack_from(message)
    later = json.dumps({"sni": "a.example", "new": [1, 2]}).encode()

    changed = HEAD.pack(*start, len(later), count, rest) + later + message[24 + length :]

    assert decode(changed).facts == Facts(sni="a.example")


@pytest.mark.parametrize("part", ["facts", "data", "session"])
def test_what_is_too_long_is_not_sent(part: str) -> None:
    session = sessions(AES128, unread=bytes(MAX_MESSAGE) if part == "session" else b"")[0]
    about = Facts(sni="x" * (MAX_MESSAGE if part == "facts" else 0))
    data = bytes(MAX_MESSAGE if part == "data" else 0)

    with pytest.raises(HandfastError, match="196608 is the limit"):
        encode(Offer(about, session, data))


def test_neither_errors_nor_representations_show_secrets() -> None:
    offer = Offer(Facts(client_ip="192.0.2.1"), sessions(AES128)[0], b"secret data")

    assert "secret data" not in repr(offer)
    assert repr(offer).startswith("Offer(192.0.2.1, Session(server")
