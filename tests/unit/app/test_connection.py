"""A connection reads, writes and ends: alike in each home of its session, blocking or not."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from handfast.app import SessionError
from handfast.errors import PeerError
from handfast.handover.application import Facts
from handfast.tls.keys import Suite
from handfast.tls.session import Direction, Session
from harness.homes import IN_KERNEL, sized
from unit.app.clients import APIS, HOMES, Both, connected, support
from unit.tls.sessions import (
    AES128,
    AES128_12,
    ALERT,
    DATA,
    HANDSHAKE,
    either_version,
    every_suite,
)

Connect = Callable[..., AbstractContextManager[Both]]


@pytest.fixture(params=[f"{api}-{home}" for api in APIS for home in HOMES])
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    api, _, home = request.param.partition("-")
    return api, home


@pytest.fixture
def connect(way: tuple[str, str]) -> Connect:
    def make(suite: Suite = AES128, **more: object) -> AbstractContextManager[Both]:
        return connected(*way, suite, **more)  # type: ignore[arg-type]

    return make


@pytest.fixture
def both(connect: Connect) -> Iterator[Both]:
    with connect() as made:
        yield made


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@every_suite
def test_bytes_go_both_ways(connect: Connect, suite: Suite) -> None:
    with connect(suite) as both:
        both.client.write(b"question")
        assert both.ours.read() == b"question"
        both.ours.write(b"answer")
        assert both.client.read(6) == b"answer"


@either_version
def test_megabytes_go_both_ways(connect: Connect, suite: Suite) -> None:
    up, down = os.urandom(sized(3_000_000)), os.urandom(sized(3_000_001))
    with connect(suite) as both:
        sender = in_thread(lambda: both.client.write(up))
        data = b""
        while len(data) < len(up):
            data += both.ours.read()
        sender.join()
        assert data == up
        received: list[bytes] = []
        reader = in_thread(lambda: received.append(both.client.read(len(down))))
        both.ours.write(down)
        reader.join()
        assert received == [down]


def test_no_more_is_read_than_is_asked_for_and_nothing_is_lost(both: Both) -> None:
    both.client.write(b"abcdefgh")

    assert [both.ours.read(3) for _ in range(3)] == [b"abc", b"def", b"gh"]


def test_what_was_opened_before_comes_first(connect: Connect) -> None:
    with connect(data=b"early ") as both:
        both.client.write(b"late")
        assert both.ours.read() == b"early "
        assert both.ours.read() == b"late"


def test_the_peer_is_what_the_message_says(connect: Connect) -> None:
    facts = Facts(
        client_ip="192.0.2.1", client_port=4433, listen_ip="198.51.100.1", listen_port=443,
        listener="web", sni="a.example", alpn="h2", tls_version="TLSv1.3",
        ciphersuite="TLS_AES_128_GCM_SHA256", group="X25519MLKEM768", resumed=True,
        certificates=(b"leaf", b"issuer"),
    )  # fmt: skip
    with connect(facts=facts) as both:
        peer = both.ours.peer

    assert (peer.address, peer.port, peer.local) == ("192.0.2.1", 4433, ("198.51.100.1", 443))
    assert (peer.listener, peer.sni, peer.alpn) == ("web", "a.example", "h2")
    assert (peer.tls_version, peer.version_code) == ("TLSv1.3", 0x0304)
    assert (peer.ciphersuite, peer.ciphersuite_code) == ("TLS_AES_128_GCM_SHA256", 0x1301)
    assert (peer.group, peer.resumed) == ("X25519MLKEM768", True)
    assert (peer.certificate, peer.certificates) == (b"leaf", (b"leaf", b"issuer"))


# The end


@either_version
def test_close_notify_is_the_end_and_we_may_go_on(connect: Connect, suite: Suite) -> None:
    with connect(suite) as both:
        both.client.write(b"that was all")
        both.client.close_notify()
        assert [both.ours.read() for _ in range(3)] == [b"that was all", b"", b""]
        both.ours.write(b"not from here")
        assert both.client.read(13) == b"not from here"


def test_the_client_may_have_ended_before_it_was_handed_over(connect: Connect) -> None:
    def ended(session: Session) -> Session:
        return replace(session, read=Direction(session.read.secret, closed=True))

    with connect(data=b"all", change=ended) as both:
        assert [both.ours.read() for _ in range(2)] == [b"all", b""]


@either_version
def test_finishing_says_our_end_and_the_client_may_go_on(connect: Connect, suite: Suite) -> None:
    with connect(suite) as both:
        both.ours.write(b"mine")
        both.ours.finish()
        both.ours.finish()
        assert both.client.read(100) == b"mine"
        assert both.client.end.reader.closed
        with pytest.raises(BrokenPipeError):
            both.ours.write(b"more")
        both.client.write(b"yours")
        assert both.ours.read() == b"yours"


@either_version
def test_closing_says_the_end_and_lets_the_last_bytes_arrive(
    connect: Connect, suite: Suite
) -> None:
    """The client still sends, at which a socket that is closed would answer with RST."""
    with connect(suite) as both:
        both.ours.write(b"last words")
        both.client.write(bytes(20_000))
        closing = in_thread(both.ours.close)
        assert both.client.read(100) == b"last words"
        assert both.client.end.reader.closed
        both.client.sock.shutdown(socket.SHUT_WR)
        closing.join()
        assert both.client.sock.recv(1) == b""
        both.ours.close()


def test_closing_does_not_wait_for_a_client_that_stays(both: Both) -> None:
    began = time.monotonic()
    both.ours.close()

    assert 0.9 < time.monotonic() - began < 5


@either_version
def test_a_fin_without_close_notify_is_truncation(connect: Connect, suite: Suite) -> None:
    with connect(suite) as both:
        both.client.write(b"a part")
        both.client.sock.shutdown(socket.SHUT_WR)
        assert both.ours.read() == b"a part"
        for _ in range(2):
            with pytest.raises(SessionError, match="closed without close_notify"):
                both.ours.read()


def test_an_end_inside_a_record_is_truncation(both: Both) -> None:
    both.client.sock.sendall(both.client.end.seal(b"a whole record")[:-3])
    both.client.sock.shutdown(socket.SHUT_WR)

    with pytest.raises(SessionError, match="closed without close_notify"):
        both.ours.read()


def test_a_reset_is_an_error_of_the_connection(both: Both) -> None:
    both.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    both.client.sock.close()

    with pytest.raises(ConnectionError):
        both.ours.read()


def test_aborting_is_no_end_to_the_client(both: Both) -> None:
    both.ours.abort()

    with pytest.raises(ConnectionResetError):
        both.client.sock.recv(1)
    with pytest.raises(OSError, match="closed"):
        both.ours.read()


# What is no data


def test_a_key_update_is_answered_and_followed(connect: Connect) -> None:
    with connect() as both:
        if both.ours.home != "user" and not support().rekey:
            pytest.skip("this kernel follows no key update")
        both.client.sock.sendall(both.client.end.writer.key_update(request=True))
        both.client.write(b"under the next key")
        assert both.ours.read() == b"under the next key"
        both.ours.write(b"and mine")
        assert both.client.read(8) == b"and mine"
        assert both.client.end.reader.sequence == 1  # of the next key


@pytest.mark.skipif(not IN_KERNEL or support().rekey, reason="for a kernel that follows none")
def test_a_key_update_that_the_kernel_cannot_follow_is_an_error() -> None:
    for api in APIS:
        with connected(api, "kernel") as both:
            both.client.sock.sendall(both.client.end.writer.key_update(request=True))
            with pytest.raises(SessionError, match="a key update, which this kernel cannot follow"):
                both.ours.read()


def test_renegotiation_is_refused_and_the_connection_goes_on(connect: Connect) -> None:
    with connect(AES128_12) as both:
        peer = both.client.peering
        both.client.sock.sendall(peer.record(HANDSHAKE, b"\x01\x00\x00\x02\x03\x03"))
        both.client.sock.sendall(peer.record(DATA, b"still here"))
        assert both.ours.read() == b"still here"


@either_version
def test_an_empty_record_is_no_end(connect: Connect, suite: Suite) -> None:
    with connect(suite) as both:
        peer = both.client.peering
        both.client.sock.sendall(peer.record(DATA, b"") + peer.record(DATA, b"after it"))
        assert both.ours.read() == b"after it"


@either_version
def test_too_many_empty_records_are_an_error(connect: Connect, suite: Suite) -> None:
    with connect(suite) as both:
        if both.ours.home == "kernel":
            pytest.skip("the kernel takes them in one call, and does not tell of them")
        for _ in range(33):
            both.client.sock.sendall(both.client.peering.record(DATA, b""))
        with pytest.raises(SessionError, match="more than 32 records with no data"):
            both.ours.read()


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
def test_what_breaks_the_protocol_is_answered_with_an_alert(
    connect: Connect, suite: Suite, record: bytes, alert: str
) -> None:
    with connect(suite) as both:
        both.client.sock.sendall(record)
        with pytest.raises(SessionError):
            both.ours.read()
        with pytest.raises(PeerError, match=f"the peer sent alert {alert}"):
            both.client.read(1)
        with pytest.raises(SessionError):
            both.ours.write(b"anything")


def test_an_alert_arrives_though_the_client_still_sends(both: Both) -> None:
    """Closing a socket with unread data makes the kernel send RST, which overtakes the alert."""
    both.client.sock.sendall(b"\x17\x03\x03\x00\x40" + bytes(100_000))
    with pytest.raises(SessionError, match="does not authenticate"):
        both.ours.read()
    closing = in_thread(both.ours.close)
    with pytest.raises(PeerError, match="the peer sent alert bad_record_mac"):
        both.client.read(1)
    both.client.sock.close()
    closing.join()


@either_version
def test_an_alert_of_the_client_ends_the_session(connect: Connect, suite: Suite) -> None:
    with connect(suite) as both:
        both.client.sock.sendall(both.client.peering.record(ALERT, b"\2\x30"))
        with pytest.raises(SessionError, match="the peer sent alert unknown_ca"):
            both.ours.read()


def test_a_record_that_comes_slowly_is_waited_for_at_rest(both: Both) -> None:
    """Some kernels call a socket readable that has a part of a record: that is no busy loop."""
    record = both.client.end.seal(b"slow")
    both.client.sock.sendall(record[:-1])
    both.ours.timeout = 0.5
    before = time.process_time()
    with pytest.raises(TimeoutError):
        both.ours.read()
    assert time.process_time() - before < 0.3

    both.client.sock.sendall(record[-1:])
    assert both.ours.read() == b"slow"


@settings(max_examples=40, deadline=None)
@given(noise=st.binary(min_size=1, max_size=300), kept=st.integers(0, 40))
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("home", HOMES)
def test_noise_of_the_client_is_an_error_and_never_data(
    api: str, home: str, noise: bytes, kept: int
) -> None:
    with connected(api, home) as both:
        record = both.client.end.seal(b"data")
        both.client.sock.sendall(record[:kept] + noise)
        both.client.sock.shutdown(socket.SHUT_WR)
        seen: list[bytes] = []
        with pytest.raises(ConnectionError):
            seen.extend(iter(both.ours.read, None))
        assert seen in ([], [b"data"])


# Waiting


def test_waiting_for_data_has_a_limit(both: Both) -> None:
    both.ours.timeout = 0.05

    with pytest.raises(TimeoutError):
        both.ours.read()
    both.client.write(b"late")
    both.ours.timeout = 10
    assert both.ours.read() == b"late"


def test_waiting_for_room_has_a_limit(both: Both) -> None:
    both.ours.timeout = 0.1

    with pytest.raises(TimeoutError):
        both.ours.write(bytes(30_000_000))


def test_a_client_that_asks_for_updates_and_does_not_read_makes_us_hold_no_more(
    connect: Connect,
) -> None:
    with connect() as both:
        if both.ours.home != "user":
            pytest.skip("the kernel holds what waits there")
        both.ours.timeout = 0.1
        with pytest.raises(TimeoutError):
            both.ours.write(bytes(30_000_000))
        for _ in range(20):
            both.client.sock.sendall(both.client.end.writer.key_update(request=True))
            both.client.write(b"x")
        both.ours.timeout = 10
        assert both.ours.read()
        seen: list[bytes] = []
        reader = in_thread(lambda: seen.append(both.client.read(1 << 30)))
        both.ours.write(b"the last")
        both.ours.finish()
        reader.join()
        assert seen[0].endswith(b"the last")


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=6), limit=st.integers(1, 50_000))
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("home", HOMES)
def test_any_pieces_arrive_in_order(api: str, home: str, sizes: list[int], limit: int) -> None:
    pieces = [os.urandom(size) for size in sizes]
    with connected(api, home) as both:
        received: list[bytes] = []
        reader = in_thread(lambda: received.append(both.client.read(sum(sizes))))
        for piece in pieces:
            both.ours.write(piece)
        reader.join()
        assert received == [b"".join(pieces)]
        sender = in_thread(lambda: both.client.write_each(pieces))
        data = b""
        while len(data) < sum(sizes):
            data += both.ours.read(limit)
        sender.join()
        assert data == b"".join(pieces)


def test_secrets_are_gone_when_it_is_closed(both: Both) -> None:
    link = both.ours._link
    halves = link._reading.contents, link._writing.sealer
    both.ours.abort()

    for half in halves:
        with pytest.raises(Exception, match="exported"):
            half.consume()
