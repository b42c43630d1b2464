from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handfast.errors import HandfastBug, PeerError
from handfast.tls.alerts import Alert
from handfast.tls.content import MAX_EMPTY_RUN, MAX_KEY_UPDATES
from handfast.tls.export import export
from handfast.tls.keys import SUITES, TLS12, Suite
from handfast.tls.reader import RecordReader
from handfast.tls.record import GCM_RECORD_LIMIT
from handfast.tls.session import Consumed, Direction, Session
from handfast.tls.writer import RecordWriter, room_for
from unit.tls import rfc8448
from unit.tls.sessions import (
    AES128,
    AES128_12,
    ALERT,
    CCS,
    CHACHA,
    CHACHA_12,
    DATA,
    HANDSHAKE,
    End,
    Peering,
    client_and_peer,
    either_version,
    ends,
    every_suite,
    every_suite_12,
    every_suite_13,
    key_update,
    pieces,
    server_and_peer,
    sessions,
    stream,
)

FULL = 1 << 14
CLOSE = bytes((1, Alert.CLOSE_NOTIFY))
CANCEL = bytes((1, Alert.USER_CANCELED))
TICKET = b"\x04\x00\x00\x20" + bytes(32)
HELLO_REQUEST = b"\x00\x00\x00\x00"
CLIENT_HELLO = b"\x01\x00\x00\x30" + bytes(48)

sizes = st.lists(st.integers(0, 40) | st.integers(0, 40_000), max_size=4)
cuts = st.lists(st.integers(1, 30) | st.integers(1, 40_000), min_size=1, max_size=4)


def refused(end: End, data: bytes) -> PeerError:
    with pytest.raises(PeerError) as caught:
        end.open(data)
    return caught.value


# The published records


def test_the_records_of_rfc_8448_are_sealed_byte_for_byte() -> None:
    server, client = End(rfc8448.server()), End(rfc8448.client())

    assert client.seal(rfc8448.PAYLOAD) == rfc8448.CLIENT_DATA
    assert client.writer.alert(Alert.CLOSE_NOTIFY) == rfc8448.CLIENT_CLOSE
    assert server.seal(rfc8448.PAYLOAD) == rfc8448.SERVER_DATA
    assert server.writer.alert(Alert.CLOSE_NOTIFY) == rfc8448.SERVER_CLOSE


def test_the_records_of_rfc_8448_are_opened() -> None:
    server, client = End(rfc8448.server()), End(rfc8448.client())

    at_server = server.open(rfc8448.CLIENT_DATA + rfc8448.CLIENT_CLOSE)
    at_client = client.open(rfc8448.TICKET + rfc8448.SERVER_DATA + rfc8448.SERVER_CLOSE)

    assert at_server == at_client == rfc8448.PAYLOAD
    assert server.reader.closed
    assert client.reader.closed


# Streams


@every_suite
@settings(max_examples=15, deadline=None)
@given(writes=sizes, reads=cuts)
def test_a_stream_arrives_intact_however_it_is_cut(
    suite: Suite, writes: list[int], reads: list[int]
) -> None:
    server, client = ends(suite, nonce=(1 << 64) - 1)
    data = stream(sum(writes))
    upwards = b"".join(client.seal(piece) for piece in _split(data, writes))
    downwards = b"".join(server.seal(piece) for piece in _split(data, writes))

    assert b"".join(server.open(piece) for piece in pieces(upwards, reads)) == data
    assert b"".join(client.open(piece) for piece in pieces(downwards, reads)) == data
    assert (server.reader.bytes, server.writer.bytes) == (len(data), len(data))
    assert server.reader.unread == b""


def _split(data: bytes, lengths: list[int]) -> list[bytes]:
    split, position = [], 0
    for length in lengths:
        split.append(data[position : position + length])
        position += length
    return split


@every_suite
@pytest.mark.parametrize("length", [1, FULL - 1, FULL, FULL + 1, 8 * FULL])
def test_a_batch_fits_the_room_that_is_asked_for_and_its_buffer_is_left_as_it_was(
    suite: Suite, length: int
) -> None:
    server, client = ends(suite)
    data = stream(length) + b"spare"
    buffer = bytearray(data)
    out = memoryview(bytearray(room_for(length)))

    written = client.writer.seal(memoryview(buffer), length, out)

    assert bytes(buffer) == data
    assert server.open(bytes(out[:written])) == data[:length]


@every_suite
def test_parked_keys_are_derived_again(suite: Suite) -> None:
    server, client = ends(suite)
    received = b""

    for piece in (b"one", b"two", b"three"):
        received += server.open(client.seal(piece))
        server.reader.park()
        client.writer.park()

    assert received == b"onetwothree"


@every_suite
def test_the_start_of_a_record_is_kept_until_the_rest_comes(suite: Suite) -> None:
    server, client = ends(suite)
    record = client.seal(b"whole") + client.seal(b"parts")

    opened = [server.open(record[i : i + 1]) for i in range(len(record))]

    assert [piece for piece in opened if piece] == [b"whole", b"parts"]


@every_suite_13
@given(data=st.binary(min_size=1, max_size=50), padding=st.integers(0, 300))
@settings(max_examples=20, deadline=None)
def test_padding_is_removed(suite: Suite, data: bytes, padding: int) -> None:
    server, peer = server_and_peer(suite)
    records = peer.record(DATA, data, padding=padding) + peer.record(DATA, b"next")

    assert server.open(records) == data + b"next"


def test_padding_up_to_the_largest_ciphertext_is_removed() -> None:
    server, peer = server_and_peer(AES128)

    assert server.open(peer.record(DATA, b"data", padding=FULL + 256 - 16 - 5)) == b"data"


def test_data_that_ends_in_zeros_is_not_taken_for_padding() -> None:
    server, peer = server_and_peer(AES128)

    assert server.open(peer.record(DATA, bytes(9)) + peer.record(DATA, bytes(9), padding=9)) == (
        bytes(18)
    )


# Key updates


@every_suite_13
def test_data_follows_a_key_update_in_either_direction(suite: Suite) -> None:
    server, client = ends(suite)

    upwards = client.seal(b"a") + client.writer.key_update(request=False) + client.seal(b"b")
    downwards = server.seal(b"c") + server.writer.key_update(request=False) + server.seal(b"d")

    assert server.open(upwards) == b"ab"
    assert client.open(downwards) == b"cd"
    assert not server.reader.update_requested


def test_a_requested_key_update_is_answered_before_the_next_data() -> None:
    server, client = ends(AES128)

    assert server.open(client.writer.key_update(request=True)) == b""
    requested = server.reader.update_requested
    answer = server.answer() + server.seal(b"after")

    assert requested
    assert client.open(answer) == b"after"
    assert client.reader.received.key_updates == 0  # counted, and reset by the data behind it
    assert not client.reader.update_requested
    assert server.open(client.seal(b"still")) == b"still"


def test_a_key_update_may_come_in_fragments() -> None:
    server, peer = server_and_peer(AES128)
    update = key_update(1)
    records = peer.record(HANDSHAKE, update[:3]) + peer.record(HANDSHAKE, update[3:])
    peer.rekey()

    assert server.open(records + peer.record(DATA, b"new key")) == b"new key"
    assert server.reader.update_requested


def test_the_old_key_is_refused_after_a_key_update() -> None:
    server, peer = server_and_peer(AES128)
    stale = Peering(AES128, server.session.read)
    server.open(peer.key_update())

    assert refused(server, stale.record(DATA, b"old key")).alert == Alert.BAD_RECORD_MAC


@pytest.mark.parametrize("suite", [AES128, SUITES[0x1302]], ids=lambda suite: suite.name)
def test_our_key_is_changed_just_below_the_limit_of_aes_gcm(suite: Suite) -> None:
    server, client = ends(suite, sequence=GCM_RECORD_LIMIT - 1)

    last = client.seal(b"last")
    sequence_at_limit = client.writer.sequence
    first = client.seal(b"first")

    assert sequence_at_limit == GCM_RECORD_LIMIT
    assert client.writer.sequence == 1
    assert server.open(last + first) == b"lastfirst"
    assert server.reader.sequence == 1


def test_a_whole_batch_at_the_limit_fits_with_its_key_update() -> None:
    server, client = ends(AES128, sequence=GCM_RECORD_LIMIT)
    data = stream(8 * FULL)

    assert server.open(client.seal(data)) == data


def test_chacha20_has_no_such_limit() -> None:
    _, client = ends(CHACHA, sequence=GCM_RECORD_LIMIT)

    client.seal(b"data")

    assert client.writer.sequence == GCM_RECORD_LIMIT + 1


def test_tls12_refuses_to_seal_at_the_limit_and_still_says_goodbye() -> None:
    server, client = ends(AES128_12, sequence=GCM_RECORD_LIMIT)

    with pytest.raises(PeerError) as caught:
        client.seal(b"data")
    alert = client.writer.alert(Alert.CLOSE_NOTIFY)

    assert caught.value.alert == Alert.INTERNAL_ERROR
    assert server.open(alert) == b""
    assert server.reader.closed


@pytest.mark.parametrize("suite", [CHACHA, CHACHA_12], ids=["1.3", "1.2"])
def test_a_sequence_number_never_wraps(suite: Suite) -> None:
    server, client = ends(suite, sequence=(1 << 64) - 2)

    assert refused(server, b"\x17\x03\x03\x00\x20" + bytes(32)).alert == Alert.UNEXPECTED_MESSAGE
    if suite.version == TLS12:
        with pytest.raises(PeerError):
            client.seal(b"data")
    else:
        client.seal(b"data")
        assert client.writer.sequence == 1


def test_key_updates_with_no_data_between_are_limited() -> None:
    server, peer = server_and_peer(AES128)
    server.open(b"".join(peer.key_update() for _ in range(MAX_KEY_UPDATES)))

    error = refused(server, peer.key_update())

    assert error.alert == Alert.UNEXPECTED_MESSAGE


def test_data_starts_the_count_of_key_updates_anew() -> None:
    server, peer = server_and_peer(AES128)

    for _ in range(3):
        server.open(b"".join(peer.key_update() for _ in range(MAX_KEY_UPDATES)))
        assert server.open(peer.record(DATA, b"x")) == b"x"


def test_a_hand_over_keeps_the_count_of_records_that_carry_nothing() -> None:
    server, peer = server_and_peer(AES128)
    server.open(b"".join(peer.record(DATA, b"") for _ in range(MAX_EMPTY_RUN)))

    error = refused(server.handed_over(), peer.record(DATA, b""))

    assert error.alert == Alert.UNEXPECTED_MESSAGE


def test_a_hand_over_keeps_the_count_of_key_updates() -> None:
    server, peer = server_and_peer(AES128)
    server.open(b"".join(peer.key_update() for _ in range(MAX_KEY_UPDATES)))

    error = refused(server.handed_over(), peer.key_update())

    assert error.alert == Alert.UNEXPECTED_MESSAGE


# Hand-over


@every_suite
def test_an_exported_session_is_of_no_use_to_its_holder(suite: Suite) -> None:
    end, _ = ends(suite)
    record = ends(suite)[1].seal(b"data")
    end.export()

    for use in (
        lambda: end.open(record),
        lambda: end.seal(b"data"),
        lambda: end.writer.alert(Alert.CLOSE_NOTIFY),
        end.export,
    ):
        with pytest.raises(Consumed):
            use()
    with pytest.raises(Consumed):
        end.writer.key_update(request=False)


@either_version
def test_an_export_after_use_also_takes_the_derived_keys(suite: Suite) -> None:
    server, client = ends(suite)
    server.open(client.seal(b"data"))
    server.seal(b"data")
    server.export()

    with pytest.raises(Consumed):
        server.open(client.seal(b"more"))
    with pytest.raises(Consumed):
        server.seal(b"more")


def test_what_the_peer_is_owed_is_answered_after_a_hand_over_too() -> None:
    server, client = ends(AES128)
    server.open(client.writer.key_update(request=True))

    server = server.handed_over()
    answer = server.answer()

    assert answer
    assert client.open(answer + server.seal(b"after")) == b"after"


def test_what_the_kernel_protects_is_not_for_the_record_layer() -> None:
    session, _ = sessions(AES128)
    read, write = (
        msgspec.structs.replace(each, in_kernel=True) for each in (session.read, session.write)
    )

    with pytest.raises(HandfastBug, match="kernel"):
        RecordReader(msgspec.structs.replace(session, read=read))
    with pytest.raises(HandfastBug, match="kernel"):
        RecordWriter(msgspec.structs.replace(session, write=write))


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_session_moves_with_its_unread_and_unsent_bytes(cut: int) -> None:
    server, client = ends(AES128)
    records = client.seal(b"first") + client.seal(b"second")
    unsent = server.seal(b"down")
    opened = server.open(records[:cut])

    session = export(server.reader, server.writer, server.session.peer, unsent)
    other = End(session)
    opened += other.open(records[cut:])

    assert opened == b"firstsecond"
    if cut >= len(records):
        assert session.received.count == len(opened)
    assert (session.unsent, session.bytes_out) == (unsent, 4)
    assert client.open(session.unsent + other.seal(b"more")) == b"downmore"


@every_suite
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_session_continues_after_a_hand_over_at_any_point(
    suite: Suite, data: st.DataObject
) -> None:
    client, peer = client_and_peer(suite)
    sealed, expected = data.draw(_streams(peer))
    cuts_here = data.draw(st.lists(st.integers(0, len(sealed)), max_size=6).map(sorted))
    received = b""

    for start, end in zip([0, *cuts_here], [*cuts_here, len(sealed)], strict=True):
        received += client.open(sealed[start:end])
        client = client.handed_over()

    assert received == expected
    assert client.session.received.count == len(expected)
    assert client.reader.unread == b""


@st.composite
def _streams(draw: st.DrawFn, peer: Peering) -> tuple[bytes, bytes]:
    """Records of a server that hold every thing that may come, and the data in them."""
    makers: dict[str, Callable[[], bytes]] = {
        "empty": lambda: peer.record(DATA, b""),
        "warning": lambda: peer.record(ALERT, CANCEL),
    }
    if peer.suite.version == TLS12:
        makers["request"] = lambda: b"".join(
            peer.record(HANDSHAKE, piece) for piece in pieces(HELLO_REQUEST, [1, 2])
        )
    else:
        makers["update"] = lambda: peer.key_update(draw(st.integers(0, 1)))
        makers["ticket"] = lambda: b"".join(
            peer.record(HANDSHAKE, piece, padding=3) for piece in pieces(TICKET, [3, 20])
        )
    sealed = expected = b""
    for name in draw(st.lists(st.sampled_from(["data", *makers]), max_size=12)):
        if name == "data":
            body = stream(draw(st.integers(1, 300)))
            sealed += peer.record(DATA, body)
            expected += body
        else:
            sealed += makers[name]()
    return sealed, expected


@every_suite
@settings(max_examples=15, deadline=None)
@given(writes=st.lists(st.integers(1, 400), max_size=8))
def test_a_writer_continues_after_each_hand_over(suite: Suite, writes: list[int]) -> None:
    server, client = ends(suite, nonce=7)
    received = sent = b""

    for length in writes:
        data = stream(length)
        received += server.open(client.seal(data))
        sent += data
        client = client.handed_over()

    assert received == sent
    assert client.session.bytes_out == len(sent)


@pytest.mark.parametrize("closing", ["reader", "writer"])
def test_a_closed_direction_stays_closed_after_a_hand_over(closing: str) -> None:
    server, client = ends(AES128)
    if closing == "reader":
        server.open(client.writer.alert(Alert.CLOSE_NOTIFY))
    else:
        server.writer.alert(Alert.CLOSE_NOTIFY)

    moved = server.handed_over()

    assert (moved.reader.closed, moved.writer.closed) == (
        closing == "reader", closing == "writer"
    )  # fmt: skip


# Limits


@pytest.mark.parametrize("padding", [0, 10])
def test_a_tls13_plaintext_of_one_byte_too_many_overflows(padding: int) -> None:
    server, peer = server_and_peer(AES128)

    error = refused(server, peer.record(DATA, bytes(FULL + 1), padding=padding))

    assert error.alert == Alert.RECORD_OVERFLOW


@every_suite_12
def test_a_tls12_plaintext_of_one_byte_too_many_overflows(suite: Suite) -> None:
    server, peer = server_and_peer(suite)

    assert refused(server, peer.record(DATA, bytes(FULL + 1))).alert == Alert.RECORD_OVERFLOW


@pytest.mark.parametrize(("suite", "limit"), [(AES128, FULL + 256), (AES128_12, FULL + 2048)])
def test_a_ciphertext_beyond_the_limit_is_refused_by_its_header(suite: Suite, limit: int) -> None:
    at_limit, _ = ends(suite)
    beyond, _ = ends(suite)

    assert at_limit.open(b"\x17\x03\x03" + limit.to_bytes(2, "big")) == b""
    error = refused(beyond, b"\x17\x03\x03" + (limit + 1).to_bytes(2, "big"))

    assert error.alert == Alert.RECORD_OVERFLOW


@pytest.mark.parametrize("length", [0, 1, 2, 100])
def test_an_inner_plaintext_of_zeros_has_no_type(length: int) -> None:
    server, peer = server_and_peer(AES128)

    assert refused(server, peer.inner(bytes(length))).alert == Alert.UNEXPECTED_MESSAGE


@either_version
@pytest.mark.parametrize("kind", [ALERT, HANDSHAKE])
def test_an_empty_alert_or_handshake_record_is_refused(suite: Suite, kind: int) -> None:
    server, peer = server_and_peer(suite)

    assert refused(server, peer.record(kind, b"")).alert == Alert.UNEXPECTED_MESSAGE


@either_version
def test_a_run_of_empty_records_is_limited(suite: Suite) -> None:
    server, peer = server_and_peer(suite)
    run = b"".join(peer.record(DATA, b"") for _ in range(MAX_EMPTY_RUN))

    assert server.open(run + peer.record(DATA, b"x")) == b"x"
    assert server.open(b"".join(peer.record(DATA, b"") for _ in range(MAX_EMPTY_RUN))) == b""
    assert refused(server, peer.record(DATA, b"")).alert == Alert.UNEXPECTED_MESSAGE


def test_padding_alone_counts_as_empty() -> None:
    server, peer = server_and_peer(AES128)
    run = b"".join(peer.record(DATA, b"", padding=50) for _ in range(MAX_EMPTY_RUN + 1))

    assert refused(server, run).alert == Alert.UNEXPECTED_MESSAGE


@either_version
def test_warnings_count_as_empty(suite: Suite) -> None:
    server, peer = server_and_peer(suite)
    run = b"".join(peer.record(ALERT, CANCEL) for _ in range(MAX_EMPTY_RUN + 1))

    assert refused(server, run).alert == Alert.UNEXPECTED_MESSAGE


# Handshake messages after the handshake


def test_a_key_update_has_to_end_its_record() -> None:
    server, peer = server_and_peer(AES128)

    error = refused(server, peer.record(HANDSHAKE, key_update() + key_update()))

    assert error.alert == Alert.UNEXPECTED_MESSAGE


@pytest.mark.parametrize("request_update", [2, 255])
def test_a_key_update_that_asks_for_neither_0_nor_1_is_refused(request_update: int) -> None:
    server, peer = server_and_peer(AES128)

    error = refused(server, peer.record(HANDSHAKE, key_update(request_update)))

    assert error.alert == Alert.ILLEGAL_PARAMETER


@pytest.mark.parametrize("body", [b"\x18\0\0\0", b"\x18\0\0\2\0\0", b"\x18\xff\xff\xff"])
def test_a_key_update_of_another_length_is_refused(body: bytes) -> None:
    server, peer = server_and_peer(AES128)

    assert refused(server, peer.record(HANDSHAKE, body)).alert == Alert.DECODE_ERROR


def test_a_ticket_is_for_clients_only() -> None:
    server, from_client = server_and_peer(AES128)
    client, from_server = client_and_peer(AES128)

    assert client.open(from_server.record(HANDSHAKE, TICKET + TICKET)) == b""
    error = refused(server, from_client.record(HANDSHAKE, TICKET))

    assert error.alert == Alert.UNEXPECTED_MESSAGE


def test_a_key_update_may_follow_a_ticket_in_its_record() -> None:
    client, peer = client_and_peer(AES128)
    record = peer.record(HANDSHAKE, TICKET + key_update())
    peer.rekey()

    assert client.open(record + peer.record(DATA, b"data")) == b"data"


@pytest.mark.parametrize("kind", [0, 1, 2, 8, 11, 13, 15, 20, 254])
def test_any_other_message_is_refused_by_its_first_byte(kind: int) -> None:
    server, peer = server_and_peer(AES128)

    assert refused(server, peer.record(HANDSHAKE, bytes((kind,)))).alert == (
        Alert.UNEXPECTED_MESSAGE
    )


@pytest.mark.parametrize("interloper", ["data", "empty data", "alert"])
def test_nothing_comes_between_the_fragments_of_a_message(interloper: str) -> None:
    client, peer = client_and_peer(AES128)
    client.open(peer.record(HANDSHAKE, TICKET[:7]))
    kind, body = {"data": (DATA, b"x"), "empty data": (DATA, b""), "alert": (ALERT, CANCEL)}[
        interloper
    ]

    assert refused(client, peer.record(kind, body)).alert == Alert.UNEXPECTED_MESSAGE


def test_a_fragmented_message_is_refused_by_its_length() -> None:
    client, peer = client_and_peer(AES128)

    assert refused(client, peer.record(HANDSHAKE, b"\x04\xff\xff\xff")).alert == Alert.DECODE_ERROR


@either_version
@pytest.mark.parametrize("body", [b"\x01", b"\x00", b""])
def test_a_change_of_cipher_spec_after_finished_is_refused(suite: Suite, body: bytes) -> None:
    server, peer = server_and_peer(suite)
    plain = b"\x14\x03\x03" + len(body).to_bytes(2, "big") + body

    assert refused(server, plain).alert == Alert.UNEXPECTED_MESSAGE
    fresh, _ = server_and_peer(suite)
    assert refused(fresh, peer.record(CCS, b"\x01")).alert == Alert.UNEXPECTED_MESSAGE


@pytest.mark.parametrize("kind", [ALERT, HANDSHAKE])
def test_tls13_takes_no_plaintext_record(kind: int) -> None:
    server, _ = server_and_peer(AES128)

    error = refused(server, bytes((kind, 3, 3, 0, 2, 1, 0)))

    assert error.alert == Alert.UNEXPECTED_MESSAGE


@pytest.mark.parametrize("kind", [1, 19, 20, 24, 255])
def test_a_protected_record_of_an_unknown_type_is_refused(kind: int) -> None:
    server, peer = server_and_peer(AES128)

    assert refused(server, peer.record(kind, b"x")).alert == Alert.UNEXPECTED_MESSAGE


@every_suite_12
def test_a_renegotiation_is_answered_with_a_warning_and_goes_on(suite: Suite) -> None:
    server, from_client = server_and_peer(suite)
    client, from_server = client_and_peer(suite)

    at_server = server.open(
        from_client.record(HANDSHAKE, CLIENT_HELLO) + from_client.record(DATA, b"x")
    )
    at_client = client.open(
        from_server.record(HANDSHAKE, HELLO_REQUEST) + from_server.record(DATA, b"y")
    )

    assert (at_server, at_client) == (b"x", b"y")
    assert server.reader.renegotiation_refused
    assert client.reader.renegotiation_refused
    server.writer.alert(Alert.NO_RENEGOTIATION)
    assert not server.writer.closed


def test_renegotiations_are_limited() -> None:
    server, peer = server_and_peer(AES128_12)
    run = b"".join(peer.record(HANDSHAKE, CLIENT_HELLO) for _ in range(MAX_EMPTY_RUN + 1))

    assert refused(server, run).alert == Alert.UNEXPECTED_MESSAGE


def test_the_messages_of_the_other_role_are_no_renegotiation() -> None:
    server, from_client = server_and_peer(AES128_12)
    client, from_server = client_and_peer(AES128_12)

    at_server = refused(server, from_client.record(HANDSHAKE, HELLO_REQUEST))
    at_client = refused(client, from_server.record(HANDSHAKE, CLIENT_HELLO))

    assert at_server.alert == at_client.alert == Alert.UNEXPECTED_MESSAGE


# Alerts


@either_version
def test_data_after_close_notify_is_ignored(suite: Suite) -> None:
    server, peer = server_and_peer(suite)
    records = peer.record(DATA, b"before") + peer.record(ALERT, CLOSE)

    assert server.open(records + peer.record(DATA, b"after") + b"part of a record") == b"before"
    assert server.open(b"garbage") == b""
    assert server.reader.closed
    assert server.reader.bytes == 6
    assert server.seal(b"half-closed")


@either_version
def test_user_canceled_is_ignored(suite: Suite) -> None:
    server, peer = server_and_peer(suite)

    assert server.open(peer.record(ALERT, CANCEL) + peer.record(DATA, b"x")) == b"x"
    assert not server.reader.closed


@either_version
@pytest.mark.parametrize(
    ("code", "name"), [(20, "bad_record_mac"), (80, "internal_error"), (233, "233")]
)
def test_a_fatal_alert_ends_the_session_and_is_not_answered(
    suite: Suite, code: int, name: str
) -> None:
    server, peer = server_and_peer(suite)

    error = refused(server, peer.record(ALERT, bytes((2, code))))

    assert error.alert is None
    assert error.reason.endswith(name)


def test_the_level_of_an_alert_counts_in_tls12_only() -> None:
    old, from_old = server_and_peer(AES128_12)
    new, from_new = server_and_peer(AES128)
    warning = bytes((1, Alert.NO_RENEGOTIATION))

    assert old.open(from_old.record(ALERT, warning) + from_old.record(DATA, b"x")) == b"x"
    assert refused(new, from_new.record(ALERT, warning)).alert is None


@either_version
@pytest.mark.parametrize("body", [b"\x01", b"\x01\x00\x00", CLOSE + CLOSE])
def test_an_alert_of_another_length_is_refused(suite: Suite, body: bytes) -> None:
    server, peer = server_and_peer(suite)

    assert refused(server, peer.record(ALERT, body)).alert == Alert.DECODE_ERROR


@either_version
@pytest.mark.parametrize("alert", [Alert.CLOSE_NOTIFY, Alert.BAD_RECORD_MAC])
def test_nothing_is_sealed_after_the_last_alert(suite: Suite, alert: Alert) -> None:
    server, _ = ends(suite)
    server.writer.alert(alert)

    with pytest.raises(HandfastBug):
        server.seal(b"data")
    with pytest.raises(HandfastBug):
        server.writer.alert(Alert.CLOSE_NOTIFY)


# What does not authenticate


@every_suite
def test_every_corrupted_byte_gives_the_same_error(suite: Suite) -> None:
    record = ends(suite)[1].seal(b"data")
    seen = set()

    for place in (1, 2, *range(5, len(record))):
        server, _ = ends(suite)
        damaged = bytearray(record)
        damaged[place] ^= 0x40
        error = refused(server, bytes(damaged))
        seen.add((error.reason, error.alert))
        # the chain would tell more than the error does
        assert error.__cause__ is None

    assert seen == {("a record does not authenticate", Alert.BAD_RECORD_MAC)}


@every_suite
def test_a_record_too_short_for_a_tag_gives_that_error_too(suite: Suite) -> None:
    for size in range(16):
        server, _ = ends(suite)
        error = refused(server, b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size))
        assert (error.reason, error.alert) == (
            "a record does not authenticate", Alert.BAD_RECORD_MAC
        )  # fmt: skip


@every_suite
def test_a_record_is_not_opened_twice(suite: Suite) -> None:
    server, client = ends(suite)
    record = client.seal(b"data")
    server.open(record)

    assert refused(server, record).alert == Alert.BAD_RECORD_MAC


@every_suite
def test_a_lost_record_is_noticed(suite: Suite) -> None:
    server, client = ends(suite)
    client.seal(b"lost")

    assert refused(server, client.seal(b"data")).alert == Alert.BAD_RECORD_MAC


@every_suite
def test_a_reflected_record_is_refused(suite: Suite) -> None:
    server, _ = ends(suite)

    assert refused(server, server.seal(b"data")).alert == Alert.BAD_RECORD_MAC


# Nonces


def test_the_explicit_nonces_of_tls12_never_repeat() -> None:
    _, client = ends(AES128_12, nonce=(1 << 64) - 20)
    sealed = b""
    for number in range(40):
        sealed += client.seal(b"data")
        if number % 7 == 0:
            sealed += client.writer.alert(Alert.USER_CANCELED)
        if number % 5 == 0:
            client = client.handed_over()
    sealed += client.seal(stream(3 * FULL)) + client.writer.alert(Alert.CLOSE_NOTIFY)

    nonces = []
    while sealed:
        nonces.append(sealed[5:13])
        sealed = sealed[5 + int.from_bytes(sealed[3:5], "big") :]

    assert len(nonces) == len(set(nonces)) == 40 + 6 + 3 + 1


def test_the_explicit_nonce_is_independent_of_the_sequence_number() -> None:
    suite = AES128_12
    keys = Direction(bytearray(20), sequence=5, nonce=900)
    session, _ = sessions(suite)
    writer = RecordWriter(Session(session.role, suite.code, keys, keys))
    out = memoryview(bytearray(100))

    written = writer.seal(memoryview(bytearray(b"data?")), 4, out)

    assert out[5:13] == (900).to_bytes(8, "big")
    assert bytes(out[:written]) == Peering(suite, keys).record(DATA, b"data")


# Anything at all


@every_suite
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200), head=st.sampled_from([b"", b"\x17\x03\x03\x00", b"\x16\x03"]))
def test_any_bytes_are_kept_or_refused(suite: Suite, data: bytes, head: bytes) -> None:
    server, _ = ends(suite)

    try:
        opened = server.open(head + data)
    except PeerError:
        return

    assert opened == b""
    assert server.reader.unread == head + data


@every_suite
@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(st.tuples(st.integers(1, 255), st.binary(max_size=20)), max_size=8),
    as_client=st.booleans(),
)
def test_any_authentic_records_give_data_or_an_alert(
    suite: Suite, records: list[tuple[int, bytes]], as_client: bool
) -> None:
    end, peer = (client_and_peer if as_client else server_and_peer)(suite)
    data = b"".join(body for kind, body in records if kind == DATA)

    try:
        opened = end.open(b"".join(peer.record(kind, body) for kind, body in records))
    except PeerError:
        return

    assert data.startswith(opened)


def test_a_reader_alone_never_shows_its_secret() -> None:
    session, _ = sessions(AES128)

    text = repr(RecordReader(session)) + repr(RecordWriter(session)) + repr(session)

    assert session.read.secret.hex() not in text
    assert repr(session.read.secret) not in text
