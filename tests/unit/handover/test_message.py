from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.errors import HandfastError
from handfast.handover.message import MAX_MESSAGE, Handover
from handfast.handover.message import decode as decode_with_count
from handfast.tls.handshake import MAX_HANDSHAKE
from handfast.tls.keys import Suite
from unit.handover.encoding import encode
from unit.tls.sessions import AES128, AES128_12, either_version, sessions


def decode(data: memoryview) -> Handover:
    return decode_with_count(data)[0]


@either_version
@pytest.mark.parametrize("listener", [0, 1, 65535])
def test_a_hand_over_comes_back_as_it_was(suite: Suite, listener: int) -> None:
    handover = Handover(listener, 7, 12345.678, sessions(suite, unread=b"ciphertext")[0])

    assert decode(memoryview(encode(handover))) == handover


def test_all_that_a_handshake_may_leave_unread_fits() -> None:
    session, _ = sessions(AES128, unread=bytes(MAX_HANDSHAKE))

    assert len(encode(Handover(1, 1, 1.0, session))) <= MAX_MESSAGE


def test_every_truncation_is_refused() -> None:
    data = encode(Handover(1, 1, 1.0, sessions(AES128)[0]))

    for length in range(len(data)):
        with pytest.raises(HandfastError):
            decode(memoryview(data)[:length])


@pytest.mark.parametrize("version", [0, 1, 255])
def test_another_format_is_refused(version: int) -> None:
    data = bytearray(encode(Handover(1, 1, 1.0, sessions(AES128)[0])))
    data[0] = version

    with pytest.raises(HandfastError, match=f"unknown format {version}"):
        decode(memoryview(data))


@given(data=st.binary(max_size=200), known=st.booleans())
def test_any_bytes_give_a_hand_over_or_an_error(data: bytes, known: bool) -> None:
    with contextlib.suppress(HandfastError):
        decode(memoryview((b"\x03" + bytes(17) + b"\x99\x00" if known else b"") + data))


@given(flips=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_hand_over_gives_another_or_an_error(flips: list[tuple[int, int]]) -> None:
    data = bytearray(encode(Handover(1, 1, 1.0, sessions(AES128_12)[0])))
    for place, mask in flips:
        data[place % len(data)] ^= mask

    with contextlib.suppress(HandfastError):
        decode(memoryview(data))


def test_no_repr_shows_a_secret() -> None:
    session, _ = sessions(AES128)

    text = repr(Handover(1, 1, 1.0, session))

    assert repr(session.read.secret)[2:20] not in text
    assert repr(session.write.secret)[2:20] not in text
