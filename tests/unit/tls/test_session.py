from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handfast.errors import HandfastError
from handfast.tls.keys import SUITES, TLS12, Suite
from handfast.tls.session import Direction, Peer, Received, Role, Session, decode, encode
from unit.tls.sessions import AES128, every_suite, secret, sessions

uint64 = st.integers(0, (1 << 64) - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@st.composite
def directions(draw: st.DrawFn, suite: Suite) -> Direction:
    length = suite.key_length + suite.fixed_iv if suite.version == TLS12 else suite.hash_length
    text = draw(st.binary(min_size=length, max_size=length))
    in_kernel = draw(st.booleans())
    empty = in_kernel and draw(st.booleans())
    return Direction(
        bytearray(b"" if empty else text), draw(uint64), draw(uint64), draw(st.booleans()),
        in_kernel, draw(uint64),
    )  # fmt: skip


@st.composite
def any_sessions(draw: st.DrawFn) -> Session:
    suite = draw(st.sampled_from([*SUITES.values()]))
    chain = draw(st.lists(st.binary(max_size=60), max_size=3).map(tuple))
    peer = Peer(
        draw(texts), draw(st.integers(0, 65535)), draw(texts), draw(texts), draw(texts),
        draw(st.booleans()), chain,
    )  # fmt: skip
    return Session(
        draw(st.sampled_from(Role)), suite.code, draw(directions(suite)), draw(directions(suite)),
        peer, draw(st.binary(max_size=80)), draw(st.binary(max_size=80)),
        Received(
            draw(uint64), draw(st.binary(max_size=40)), draw(st.integers(0, 32)),
            draw(st.integers(0, 32)), draw(st.booleans()), draw(st.booleans()),
        ),
        draw(uint64),
    )  # fmt: skip


@given(session=any_sessions())
def test_a_session_comes_back_as_it_was(session: Session) -> None:
    back = decode(encode(session))

    assert back == session
    assert back.role is session.role
    assert (back.suite, back.version) == (session.suite, session.suite.version)


def test_a_session_is_read_from_a_view_without_keeping_it() -> None:
    session, _ = sessions(AES128)
    buffer = bytearray(encode(session))

    back = decode(memoryview(buffer))
    buffer[:] = bytes(len(buffer))

    assert back == session


@every_suite
def test_no_repr_shows_a_secret_or_any_traffic(suite: Suite) -> None:
    end, _ = sessions(suite, unread=b"unread ciphertext")
    session = msgspec.structs.replace(
        end, unsent=b"unsent ciphertext", received=Received(7, b"fragment")
    )

    for text in (repr(session), str(session), f"{session!r:s}", repr([session]), repr(session.read),
                 repr((session.write,)), repr(session.received)):  # fmt: skip
        for secret_bytes in (session.read.secret, session.write.secret):
            assert secret_bytes[:8].hex() not in text
            assert repr(secret_bytes)[2:20] not in text
        assert "ciphertext" not in text
        assert "fragment" not in text


@pytest.mark.parametrize(
    "data", [b"", b"\x92", b"\x92\x02", b"\x92\x00", bytes(40), b"\x92\x00\xcd\x13\x01"]
)
def test_what_is_no_session_is_refused(data: bytes) -> None:
    with pytest.raises(HandfastError):
        decode(data)


def test_every_truncation_is_refused() -> None:
    data = encode(sessions(AES128)[0])

    for length in range(len(data)):
        with pytest.raises(HandfastError):
            decode(data[:length])


def test_every_flipped_bit_gives_a_session_or_an_error_and_shows_no_secret() -> None:
    session, _ = sessions(AES128)
    data = encode(session)

    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        try:
            decode(bytes(damaged))
        except HandfastError as error:
            assert repr(session.read.secret)[2:20] not in repr(error)  # noqa: PT017 - may pass
            assert error.__cause__ is None  # noqa: PT017 - may pass


@settings(max_examples=200)
@given(data=st.binary(max_size=300), known=st.booleans())
def test_any_bytes_give_a_session_or_an_error(data: bytes, known: bool) -> None:
    with contextlib.suppress(HandfastError):
        decode(b"\x99\x00" + data if known else data)


@given(values=st.lists(st.none() | st.integers() | st.binary() | st.text(), max_size=12))
def test_any_fields_give_a_session_or_an_error(values: list[object]) -> None:
    with contextlib.suppress(HandfastError, OverflowError):
        data = msgspec.msgpack.encode(values)
        decode(data)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(HandfastError):
        decode(b"\x92\x01" + b"\x91" * 100_000)


@every_suite
@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("side", ["read", "write"])
def test_a_secret_of_the_wrong_length_is_refused(suite: Suite, change: int, side: str) -> None:
    end, _ = sessions(suite)
    wrong = Direction(bytearray(secret(suite, 1) + b"x")[: len(secret(suite, 1)) + change])

    with pytest.raises(HandfastError, match="wrong length"):
        decode(encode(msgspec.structs.replace(end, **{side: wrong})))


@pytest.mark.parametrize("code", [0, 0x002F, 0x1304, 0xFFFF, 1 << 40])
def test_an_unknown_suite_is_refused(code: int) -> None:
    end, _ = sessions(AES128)

    with pytest.raises(HandfastError, match="unknown cipher suite"):
        decode(encode(msgspec.structs.replace(end, suite_code=code)))


@pytest.mark.parametrize(
    "damage",
    [
        {"received": Received(-1)},
        {"received": Received(key_updates=-1)},
        {"bytes_out": -1},
        {"read": Direction(bytearray(32), -1)},
        {"write": Direction(bytearray(32), 0, -1)},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_a_negative_count_is_refused(damage: dict[str, object]) -> None:
    end, _ = sessions(AES128)

    with pytest.raises(HandfastError):
        decode(encode(msgspec.structs.replace(end, **damage)))
