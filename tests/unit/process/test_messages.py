from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handfast.errors import HandfastError
from handfast.observe.counters import Counts
from handfast.observe.status import CertificateExpiry
from handfast.process.messages import (
    Configure,
    Configured,
    Died,
    Drain,
    End,
    FromChild,
    Kill,
    Loaded,
    Query,
    Ready,
    Refused,
    Reopen,
    Report,
    Serve,
    Spawn,
    Spawned,
    StatusReply,
    StatusRequest,
    ToChild,
    control_pair,
    receive_from_child,
    receive_in_child,
    send,
)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    supervisor, child = control_pair()
    child.settimeout(5)
    with supervisor, child:
        yield supervisor, child


FROM_CHILD: list[FromChild] = [
    Ready(),
    Report(7, Counts(numbers={"accepted": 3})),
    StatusRequest(3),
    Refused(("a", "é")),
    Loaded((CertificateExpiry("a", "CN=a", "00ff", 1e9),)),
    Configured(2),
    Spawned(1, 4711),
    Died(1, 4711, -9),
]
TO_CHILD: list[ToChild] = [
    Query(7),
    Drain(),
    End("SIGTERM"),
    Spawn(2, 5),
    Kill(2),
    Configure(2),
    Serve(),
    Reopen(),
    StatusReply(3),
]


@pytest.mark.parametrize("message", FROM_CHILD, ids=lambda message: type(message).__name__)
def test_the_supervisor_reads_what_a_child_says(pair: Pair, message: FromChild) -> None:
    supervisor, child = pair

    send(child, message)

    assert receive_from_child(supervisor) == (message, [])
    assert receive_from_child(supervisor) is None


@pytest.mark.parametrize("message", TO_CHILD, ids=lambda message: type(message).__name__)
def test_a_child_reads_what_the_supervisor_says(pair: Pair, message: ToChild) -> None:
    supervisor, child = pair

    send(supervisor, message)

    assert receive_in_child(child) == (message, [])


def test_descriptors_come_along(pair: Pair) -> None:
    supervisor, child = pair
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(supervisor, Spawn(2, 5), theirs.fileno())
        message, descriptors = receive_in_child(child)

        assert message == Spawn(2, 5)
        with socket.socket(fileno=descriptors[0]) as moved:
            moved.sendall(b"x")
            assert ours.recv(1) == b"x"
        assert not os.get_inheritable(theirs.fileno())


def test_descriptors_of_a_malformed_message_do_not_stay_open(pair: Pair) -> None:
    supervisor, child = pair
    ours, theirs = socket.socketpair()
    with ours:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (theirs.fileno(),)))
        supervisor.sendmsg([b"garbage"], [rights])
        theirs.close()

        with pytest.raises(HandfastError):
            receive_in_child(child)

        ours.settimeout(5)
        assert ours.recv(1) == b""


def test_an_end_that_is_gone_is_the_end_of_file(pair: Pair) -> None:
    supervisor, child = pair
    child.close()

    with pytest.raises(EOFError):
        receive_from_child(supervisor)
    send(supervisor, Drain())  # tells nobody, and does not fail


def test_a_child_notices_that_the_supervisor_is_gone(pair: Pair) -> None:
    supervisor, child = pair
    supervisor.close()

    with pytest.raises(EOFError):
        receive_in_child(child)


def test_a_child_that_reads_nothing_does_not_block_the_supervisor(pair: Pair) -> None:
    supervisor, _ = pair

    for number in range(5000):
        send(supervisor, Query(number))


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"garbage",
        msgspec.msgpack.encode({"type": "Query", "query": 1}),
        msgspec.msgpack.encode({"type": "Report", "query": "x", "counters": {}}),
        msgspec.msgpack.encode({"type": "Spawned", "number": 1}),
        msgspec.msgpack.encode(Refused(("text",))).replace(b"text", b"\xff\xfe\xfd\xfc"),
        b"\x91" * 50_000,
    ],
    ids=["byte", "text", "not a child's", "wrong type", "missing field", "not UTF-8", "nested"],
)
def test_a_malformed_message_from_a_child_is_an_error_of_ours(pair: Pair, data: bytes) -> None:
    supervisor, child = pair
    child.send(data)

    with pytest.raises(HandfastError):
        receive_from_child(supervisor)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    data=st.binary(min_size=1, max_size=200),
    start=st.sampled_from([b"", *(msgspec.msgpack.encode(each) for each in FROM_CHILD)]),
    cut=st.integers(0, 60),
)
def test_any_bytes_from_a_child_are_a_message_or_an_error(
    pair: Pair, data: bytes, start: bytes, cut: int
) -> None:
    supervisor, child = pair
    child.send(start[:cut] + data)

    with contextlib.suppress(HandfastError):
        receive_from_child(supervisor)


@pytest.mark.parametrize("pid", [-1, 1 << 31, 1 << 70])
def test_what_is_no_pid_is_no_message(pair: Pair, pid: int) -> None:
    """To kill(2), -1 is everybody."""
    supervisor, child = pair
    for kind, more in (("Spawned", {}), ("Died", {"status": 0})):
        wire = {"type": kind, "number": 1, "pid": pid if pid < 1 << 64 else float(pid), **more}
        child.send(msgspec.msgpack.encode(wire))

        with pytest.raises(HandfastError):
            receive_from_child(supervisor)


def test_whether_a_message_was_lost_is_told(pair: Pair) -> None:
    supervisor, child = pair

    assert send(supervisor, Drain())
    while send(supervisor, Query(1)):
        pass
    child.close()

    assert not send(supervisor, Drain())
