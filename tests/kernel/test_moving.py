"""A session in the kernel: it carries what one in user space carries, and ends as that ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from msgspec.structs import replace

from handfast.errors import PeerError
from handfast.relay import splicing
from handfast.relay.plan import Plan
from handfast.relay.pump import Flow
from handfast.relay.splicing import FromKernel, ToKernel
from handfast.tls.keys import Suite
from handfast.tls.record import MAX_PLAINTEXT
from handfast.tls.session import Session
from handfast.transport.kernel import Support
from harness.homes import stays
from harness.streams import random_bytes, sha256
from unit.relay.relaying import (
    Peer,
    Relaying,
    TlsClient,
    listener_of,
    listening,
    plan_of,
    relaying,
    service_of,
)
from unit.tls.sessions import (
    AES128,
    AES128_12,
    ALERT,
    DATA,
    HANDSHAKE,
    Peering,
    either_version,
    every_suite,
    every_suite_12,
)

MEGABYTE = 1 << 20


@pytest.fixture
def door() -> Iterator[socket.socket]:
    with listening() as sock:
        yield sock


def plan(door: socket.socket, support: Support, *, after: int = 0) -> Plan:
    listener = replace(listener_of(service_of(door)), kernel_after=after)
    return replace(plan_of(listener), kernel=support)


@pytest.fixture
def front(door: socket.socket, support: Support) -> Iterator[Relaying]:
    with relaying(plan(door, support)) as running:
        yield running


def home(front: Relaying) -> str:
    (connection,) = front.connections
    assert connection.transport is not None
    return connection.transport.value


def ending(front: Relaying) -> dict[str, str]:
    return front.event(subevent="client_disconnect")


def counted(monkeypatch: pytest.MonkeyPatch, flow: type[Flow]) -> list[Flow]:
    """Note every time that a direction is told that there is something to read."""
    calls: list[Flow] = []
    readable = flow.readable

    def noting(self: Flow) -> None:
        calls.append(self)
        readable(self)

    monkeypatch.setattr(flow, "readable", noting)
    return calls


def exchange(front: Relaying, client: TlsClient, door: socket.socket, count: int) -> None:
    """Send so many bytes each way at once, in pieces that fit no record, and compare."""
    target = front.target(door)
    up, down = random_bytes(count), random_bytes(count + 1)
    piece = 50_001
    for start in range(0, len(down), piece):
        client.write(up[start : start + piece])
        target.send_all(down[start : start + piece])
        client.look()
        target.look()
    assert sha256(target.receive(count)) == sha256(up)
    assert sha256(client.receive(count + 1)) == sha256(down)


@every_suite
def test_every_suite_carries_megabytes_both_ways(
    front: Relaying, door: socket.socket, suite: Suite
) -> None:
    client = front.client(suite=suite)
    assert home(front) == "kernel"

    exchange(front, client, door, 2 * MEGABYTE)


@either_version
def test_bytes_are_counted_as_in_user_space(
    front: Relaying, door: socket.socket, suite: Suite
) -> None:
    client = front.client(suite=suite)
    target = front.target(door)
    client.write(b"question")
    target.receive(8)
    target.send_all(b"an answer")
    client.receive(9)
    client.send_all(client.end.writer.alert(0))
    target.wait_for_the_end()
    target.finish()
    client.wait_for_the_end()

    end = ending(front)
    assert (end["bytes_in"], end["bytes_out"], end["transport"]) == ("8", "9", "kernel")
    assert "error_msg" not in end


@either_version
def test_it_moves_in_the_middle_of_a_stream_when_it_has_carried_enough(
    door: socket.socket, support: Support, suite: Suite
) -> None:
    """The clients' records are cut by every read, so it waits for the end of one."""
    with relaying(plan(door, support, after=3 * MEGABYTE)) as front:
        client = front.client(suite=suite)
        assert home(front) == "user"

        exchange(front, client, door, 4 * MEGABYTE)

        assert home(front) == "kernel"
        assert front.event(subevent="client_connect")["transport"] == "user"


def test_it_stays_in_user_space_until_it_has_carried_enough(
    door: socket.socket, support: Support
) -> None:
    with relaying(plan(door, support, after=10)) as front:
        client = front.client()
        target = front.target(door)
        client.write(b"12345")
        target.receive(5)
        assert home(front) == "user"
        target.send_all(b"67890")
        client.receive(5)

        assert home(front) == "kernel"


@pytest.mark.parametrize("kept", [1, 5, 30, 35])
def test_what_was_read_already_is_opened_in_user_space(
    front: Relaying, door: socket.socket, kept: int
) -> None:
    """The acceptor read a record and the start of the next; the rest comes later."""
    first, second = b"first ", b"and the second"

    def change(session: Session) -> Session:
        peer = Peering(session.suite, session.read)
        record = peer.record(DATA, first)
        rest.append(peer.record(DATA, second))
        return replace(session, unread=record + rest[0][:kept])

    rest: list[bytes] = []
    client = front.client(change)
    target = front.target(door)
    assert target.receive(len(first)) == first
    assert home(front) == "kernel-tx"
    client.send_all(rest[0][kept:])

    assert target.receive(len(second)) == second
    assert home(front) == "kernel"


def test_what_was_sealed_and_not_sent_goes_first(front: Relaying, door: socket.socket) -> None:
    def change(session: Session) -> Session:
        writer = Peering(session.suite, session.write)
        unsent = writer.record(DATA, b"sealed by the acceptor")
        return replace(session, unsent=unsent, write=replace(session.write, sequence=1))

    client = front.client(change)
    front.target(door).send_all(b", sealed by the kernel")

    assert client.receive(44) == b"sealed by the acceptor, sealed by the kernel"
    assert home(front) == "kernel"


@every_suite_12
def test_no_nonce_repeats_on_the_wire(door: socket.socket, support: Support, suite: Suite) -> None:
    """TLS 1.2 AES-GCM sends its nonces: those of user space go on in the kernel."""
    with relaying(plan(door, support, after=5000)) as front:
        client = front.client(suite=suite)
        wire = b""
        target = front.target(door)
        for _ in range(40):
            target.send_all(b"x" * 500)
            arrived = 0
            while arrived < 500:
                front.loop.turn()
                data = _take(client.sock)
                wire += data
                arrived += len(client.end.open(data))
        assert home(front) == "kernel"

    nonces, records = [], wire
    while records:
        nonces.append(records[5:13])
        records = records[5 + int.from_bytes(records[3:5], "big") :]
    assert len(nonces) == 40
    if suite.is_gcm:
        first = int.from_bytes(nonces[0], "big")
        assert [int.from_bytes(each, "big") for each in nonces] == list(range(first, first + 40))
    else:
        assert len(set(nonces)) == 40


def _take(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except BlockingIOError:
        return b""


# What the kernel refuses stays in user space


def test_a_client_that_has_closed_already_stays_in_user_space(
    front: Relaying, door: socket.socket
) -> None:
    """Its request and its end came with the last flight of the handshake; the answer is due."""

    def change(session: Session) -> Session:
        return replace(session, unread=Peering(session.suite, session.read).record(DATA, b"all"))

    client = front.client(change, closed=True)
    target = front.target(door)

    assert target.receive(3) == b"all"
    assert front.event("kernel_tls_refused")["error_desc"] == "Transport endpoint is not connected"
    assert front.relay.counters.kernel_refused == 1
    assert front.event(subevent="client_connect")["transport"] == "user"
    client.sock.close()


@either_version
def test_a_cipher_that_the_kernel_lacks_stays_in_user_space(
    door: socket.socket, support: Support, suite: Suite
) -> None:
    lacking = replace(support, tx=support.tx - {suite.code}, rx=support.rx - {suite.code})
    with relaying(plan(door, lacking)) as front:
        client = front.client(suite=suite)

        exchange(front, client, door, MEGABYTE)

        assert home(front) == "user"


@either_version
def test_our_direction_alone_can_be_in_the_kernel(
    door: socket.socket, support: Support, suite: Suite
) -> None:
    with relaying(plan(door, replace(support, rx=frozenset()))) as front:
        client = front.client(suite=suite)

        exchange(front, client, door, 2 * MEGABYTE)

        assert home(front) == "kernel-tx"
        client.send_all(client.end.writer.alert(0))
        front.until(lambda: front.connections[0].to_target.ended)


@stays
def test_what_the_probe_did_not_foresee_is_no_problem_either(
    front: Relaying, door: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says no to a direction for which it said yes at the start (out of memory, say)."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("handfast.transport.kernel.KernelReader.move", refuse)
    client = front.client()

    exchange(front, client, door, MEGABYTE)

    assert home(front) == "kernel-tx"
    assert front.event("kernel_tls_refused", direction="rx")


# What is no data


@either_version
def test_close_notify_is_the_end_and_the_other_direction_goes_on(
    front: Relaying, door: socket.socket, suite: Suite
) -> None:
    client = front.client(suite=suite)
    target = front.target(door)
    client.send_all(client.end.seal(b"question") + client.end.writer.alert(0))
    assert target.receive(8) == b"question"
    target.wait_for_the_end()
    target.send_all(b"answer")
    assert client.receive(6) == b"answer"
    target.finish()
    client.wait_for_the_end()

    assert client.end.reader.closed
    assert "error_msg" not in ending(front)


@either_version
def test_an_alert_of_the_client_ends_both_sides(
    front: Relaying, door: socket.socket, suite: Suite
) -> None:
    client = front.client(suite=suite)
    target = front.target(door)
    client.send_all(Peering(suite, client.end.session.write).record(ALERT, b"\2\x30"))
    target.wait_for_the_end()

    assert target.was_reset
    assert ending(front)["error_msg"] == "the peer sent alert unknown_ca"


@either_version
@pytest.mark.parametrize(
    ("record", "alert"),
    [
        (b"\x17\x03\x03\x00\x40" + bytes(64), "bad_record_mac"),
        (b"\x17\x03\x03\xff\xff" + bytes(64), "record_overflow"),
        (b"\x99\x99\x99\x00\x20" + bytes(64), "unexpected_message"),
    ],
    ids=["forged", "too long", "none"],
)
def test_what_does_not_open_is_answered_with_an_alert(
    front: Relaying, door: socket.socket, suite: Suite, record: bytes, alert: str
) -> None:
    client = front.client(suite=suite)
    target = front.target(door)
    client.sock.sendall(record)
    with pytest.raises(PeerError, match=f"the peer sent alert {alert}"):
        client.wait_for_the_end()
    target.wait_for_the_end()

    assert target.was_reset
    assert "error_msg" in ending(front)
    client.until(lambda: client.ended)
    assert not client.was_reset  # which could overtake the alert


@pytest.mark.parametrize("bad", [b"\x17\x03\x03\xff\xff", b"\x17\x03\x03\0\1", b"\x99" * 5])
def test_what_is_behind_a_full_record_is_not_overlooked(
    front: Relaying, door: socket.socket, bad: bytes
) -> None:
    """Behind one that is full there may be more; the kernel tells of a bad header once only."""
    client = front.client()
    target = front.target(door)
    data = random_bytes(MAX_PLAINTEXT)
    client.sock.sendall(client.end.seal(data) + bad + bytes(64))
    with pytest.raises(PeerError, match="the peer sent alert"):
        client.wait_for_the_end()
    target.wait_for_the_end()

    assert target.was_reset
    assert "error_msg" in ending(front)


@either_version
def test_a_handshake_message_that_nobody_expects_is_answered_with_an_alert(
    front: Relaying, door: socket.socket, suite: Suite
) -> None:
    client = front.client(suite=suite)
    target = front.target(door)
    client.send_all(
        Peering(suite, client.end.session.write).record(HANDSHAKE, b"\x0b\x00\x00\x01\x00")
    )
    target.wait_for_the_end()

    assert target.was_reset
    assert ending(front)["error_msg"] == "unexpected handshake message 11"


def test_renegotiation_is_refused_and_the_connection_goes_on(
    front: Relaying, door: socket.socket
) -> None:
    client = front.client(suite=AES128_12)
    target = front.target(door)
    peer = Peering(AES128_12, client.end.session.write)
    client.send_all(peer.record(HANDSHAKE, b"\x01\x00\x00\x02\x03\x03"))
    client.send_all(peer.record(DATA, b"still here"))

    assert target.receive(10) == b"still here"
    target.send_all(b"indeed")
    assert client.receive(6) == b"indeed"
    assert client.end.reader.sequence == 2  # the warning was before that


def test_empty_records_are_taken_and_too_many_one_by_one_are_refused(
    front: Relaying, door: socket.socket
) -> None:
    client = front.client()
    target = front.target(door)
    peer = Peering(AES128, client.end.session.write)
    for _ in range(3):
        client.send_all(b"".join(peer.record(DATA, b"") for _ in range(20)))
        client.send_all(peer.record(DATA, b"data"))
        assert target.receive(4) == b"data"
    while not target.ended:  # of those that come together, the kernel tells once
        if front.connections:
            client.send_all(peer.record(DATA, b""))
        front.loop.turn()
        target.look()

    assert ending(front)["error_msg"] == "more than 32 records with no data"


def test_a_key_update_is_followed_or_ends_the_connection_by_its_name(
    front: Relaying, door: socket.socket, support: Support
) -> None:
    client = front.client()
    target = front.target(door)
    for _ in range(3):
        client.send_all(client.end.writer.key_update(request=True) + client.end.seal(b"after"))
        if not support.rekey:
            target.wait_for_the_end()
            assert ending(front)["error_msg"] == "a key update, which this kernel cannot follow"
            return
        assert target.receive(5) == b"after"
        target.send_all(b"answer")
        assert client.receive(6) == b"answer"
    assert home(front) == "kernel"


def test_our_own_key_changes_before_its_limit_where_the_kernel_can(
    front: Relaying, door: socket.socket, support: Support, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handfast.transport.kernel.BLOCK_LIMIT", 500)
    client = front.client()
    target = front.target(door)
    if support.rekey:
        for _ in range(60):
            target.send_all(b"x" * 1000)
            assert client.receive(1000) == b"x" * 1000
        assert client.end.reader.sequence < 60  # it began anew with each key
        assert home(front) == "kernel"
        return
    while front.connections:
        with suppress(OSError):
            target.sock.send(b"x" * 1000)
        front.loop.turn()
    with pytest.raises(PeerError, match="the peer sent alert internal_error"):
        client.wait_for_the_end()
    assert ending(front)["error_msg"] == "the key has sealed as much as it may"


# The end of a stream


@pytest.mark.parametrize("whole", [True, False], ids=["between records", "inside a record"])
@either_version
def test_fin_without_close_notify_is_truncation(
    front: Relaying, door: socket.socket, suite: Suite, whole: bool
) -> None:
    client = front.client(suite=suite)
    target = front.target(door)
    client.write(b"half of it")
    if not whole:
        client.sock.sendall(client.end.seal(b"the rest")[:-1])
    client.finish()
    target.wait_for_the_end()

    assert target.was_reset
    assert ending(front)["error_msg"] == "closed without close_notify"


@either_version
def test_everything_arrives_before_the_end_however_slowly_it_is_read(
    front: Relaying, door: socket.socket, suite: Suite
) -> None:
    """The kernel keeps sealed records for which the socket has no room; FIN must not pass them."""
    client = front.client(suite=suite)
    target = front.target(door)
    (connection,) = front.connections
    sent, received = b"", b""
    while connection.to_client.pending is None:
        piece = random_bytes(MEGABYTE)
        with suppress(BlockingIOError):
            sent += piece[: target.sock.send(piece)]
        front.loop.turn()
    target.finish()
    while not client.end.reader.closed:
        if not (piece := _take(client.sock)):
            front.loop.turn()
        received += client.end.open(piece)

    assert sha256(received) == sha256(sent)


@stays
@either_version
def test_the_end_does_not_overtake_what_the_kernel_still_holds(
    front: Relaying, door: socket.socket, suite: Suite
) -> None:
    """The last record fills the socket, and the kernel may keep the rest of it for later.

    How many records those are shows with one connection; the next gets as many, and then the end.
    """
    first, target = front.client(suite=suite), front.target(door)
    enough = _fill(front, first, target, MEGABYTE) - 1
    first.reset()
    front.until(lambda: not front.connections)

    client, target = front.client(suite=suite), front.target(door)
    assert _fill(front, client, target, enough) == enough
    (connection,) = front.connections
    assert connection.to_client.pending is None
    target.finish()
    front.until(lambda: connection.to_client.ended)
    client.wait_for_the_end()

    assert client.opened == bytes(MAX_PLAINTEXT * enough)
    assert client.end.reader.closed


def _fill(front: Relaying, client: TlsClient, target: Peer, most: int) -> int:
    """Send records one by one to a client that does not read; give how many until one waits."""
    (connection,) = front.connections
    for sock in (client.sock, connection.client):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    for count in range(1, most + 1):
        target.send_all(bytes(MAX_PLAINTEXT))
        while connection.counts()[1] < count * MAX_PLAINTEXT:
            front.loop.turn()
        if connection.to_client.pending is not None:
            return count
    return most


def test_an_end_for_which_there_is_no_room_is_sent_when_there_is(
    front: Relaying, door: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = front.client()
    target = front.target(door)
    client.send_all(client.end.writer.alert(0))
    target.wait_for_the_end()
    writable = splicing._is_writable
    answers = [False]

    def answer(sock: socket.socket) -> bool:
        return answers.pop() if answers else writable(sock)

    monkeypatch.setattr(splicing, "_is_writable", answer)
    target.send_all(b"the answer")
    target.finish()
    assert client.receive(10) == b"the answer"
    client.wait_for_the_end()

    assert client.end.reader.closed
    assert "error_msg" not in ending(front)
    assert not front.connections


def test_an_urgent_byte_of_the_target_holds_nothing_up(
    front: Relaying, door: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, ToKernel)
    client = front.client()
    target = front.target(door)
    target.send_all(b"before")
    target.sock.send(b"!", socket.MSG_OOB)
    target.send_all(b"after")

    assert client.receive(11) == b"beforeafter"
    for _ in range(20):
        front.loop.turn()
    assert len(calls) < 10


def test_many_small_records_do_not_keep_other_connections_waiting(
    front: Relaying, door: socket.socket
) -> None:
    """Not even those of a client whose socket is watched for changes, and read to the end."""
    client, other = front.client(), front.client()
    target, others = front.target(door), front.target(door)
    record = client.end.seal(b"in two parts")
    client.sock.sendall(record[:-3])
    for _ in range(3):
        front.loop.turn()
    client.sock.sendall(record[-3:] + b"".join(client.end.seal(b"x") for _ in range(2000)))
    other.write(b"me too")
    turns = 0
    while len(others.received) < 6:
        front.loop.turn()
        others.look()
        turns += 1

    assert turns < 500
    assert target.receive(2012) == b"in two parts" + b"x" * 2000


def test_a_part_of_a_record_does_not_keep_the_relay_busy(
    front: Relaying, door: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old kernels call a socket readable that has one, again and again."""
    calls = counted(monkeypatch, FromKernel)
    client = front.client()
    target = front.target(door)
    record = client.end.seal(b"in two parts")
    client.sock.sendall(record[:-3])
    for _ in range(50):
        front.loop.turn()
    assert len(calls) < 5
    client.sock.sendall(record[-3:])
    assert target.receive(12) == b"in two parts"

    for number in range(100):  # it is watched for changes now, and must miss none
        client.write(b"%8d" % number * (number + 1))
        assert target.receive(8 * (number + 1)) == b"%8d" % number * (number + 1)


# Back-pressure


@pytest.mark.parametrize("copied", [False, True], ids=["spliced", "copied"])
def test_a_side_that_does_not_read_stops_the_other_and_nothing_is_lost(
    front: Relaying, door: socket.socket, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if copied:  # as when no pipe can be had
        monkeypatch.setattr(front.relay.pipes, "take", lambda: None)
    client = front.client()
    target = front.target(door)
    for sender, receiver, flow in (
        (target, client, ToKernel),
        (client, target, FromKernel),
    ):
        sent = b""
        piece = random_bytes(MAX_PLAINTEXT)
        (connection,) = front.connections
        moving = next(
            each for each in (connection.to_target, connection.to_client) if isinstance(each, flow)
        )
        while moving.pending is None:
            data = client.end.seal(piece) if sender is client else piece
            left = memoryview(data)
            while left and moving.pending is None:
                try:
                    left = left[sender.sock.send(left) :]
                except BlockingIOError:
                    pass
                front.loop.turn()
            sent += piece
            rest = bytes(left)
        waiting = len(front.connections)
        taken = b""
        while len(taken) < len(sent):
            if rest:
                try:
                    rest = rest[sender.sock.send(rest) :]
                except BlockingIOError:
                    pass
            front.loop.turn()
            receiver.look()
            if isinstance(receiver, TlsClient):
                taken, receiver.opened = taken + receiver.opened, b""
            else:
                taken, receiver.received = taken + receiver.received, b""
        assert waiting == 1
        assert sha256(taken) == sha256(sent)


def test_an_end_of_ours_is_no_orderly_end_for_a_target_that_has_not_taken_all(
    front: Relaying, door: socket.socket
) -> None:
    client = front.client()
    target = front.target(door)
    (connection,) = front.connections
    left = b""
    while connection.to_target.pending is None:
        left = left or client.end.seal(random_bytes(MAX_PLAINTEXT))
        with suppress(BlockingIOError):
            left = left[client.sock.send(left) :]
        front.loop.turn()

    connection.end("a limit of ours")
    target.wait_for_the_end()

    assert target.was_reset


def test_a_connection_that_ends_gives_its_pipe_back(front: Relaying, door: socket.socket) -> None:
    client = front.client()
    target = front.target(door)
    (connection,) = front.connections
    while connection.to_client.pending is None:
        try:
            target.sock.send(random_bytes(MEGABYTE))
        except BlockingIOError:
            pass
        front.loop.turn()
    client.reset()
    front.until(lambda: not front.connections)

    assert all(not len(each) for each in front.relay.pipes._spare)
