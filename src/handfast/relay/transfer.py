"""A connection's way from one relay to another: out of this one as a value, and into that one.

Everything of it goes along: both sockets, the sessions wherever they live, what was read and not
carried yet, which side has ended, and since when nothing happened. What is not a property of the
connection stays: who is its relay, and what is derived from the configuration there.

A connection can go when it has a target and no callback of its own is running. Until it has one,
there is nothing to go with.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final

from handfast.handover.message import Course, Established, Handover
from handfast.relay.pump import Flow
from handfast.relay.splicing import FromKernel, ToKernel
from handfast.relay.state import State
from handfast.relay.targets import decode_identity, encode_identity
from handfast.tls.export import export
from handfast.tls.reader import RecordReader
from handfast.tls.session import Peer, Session
from handfast.tls.writer import RecordWriter
from handfast.transport.kernel import KernelReader, KernelWriter

if TYPE_CHECKING:
    from handfast.relay.connection import Connection

NOBODY: Final = Peer()


def can_go(connection: Connection) -> bool:
    """Tell whether a connection of the relay's can be given away now."""
    return connection.target is not None and connection.target_state is not None


def give(connection: Connection) -> tuple[Handover, tuple[socket.socket, socket.socket]]:
    """Take a connection that can go out of its relay, as a value; its sockets are the caller's.

    The connection is nobody's afterwards, and its sessions live in the value alone.
    """
    target, goal = connection.target, connection.target_state
    assert target is not None and goal is not None  # noqa: S101, PT018 - `can_go`
    to_target, to_client = connection.to_target, connection.to_client
    relay, report = connection.relay, connection.report
    for sock in (connection.client, target):
        relay.loop.remove_reader(sock.fileno())
        relay.loop.remove_writer(sock.fileno())
    state = connection.state
    courses = _course(to_target), _course(to_client)
    relay.part_with(connection)
    established = Established(
        report.peer(connection.certificates),
        _session(to_target, to_client),
        _session(to_client, to_target),
        *courses,
        state.value,
        encode_identity(goal.address, goal.tls),
        report.server,
        report.logged,
        connection.touched,
        time.monotonic(),
    )
    connection.leave()
    handover = Handover(connection.listener, relay.approval, report.accepted, established)
    return handover, (connection.client, target)


def _course(flow: Flow) -> Course:
    return Course(flow.ended, flow.take_pending(), flow.carried)


def _session(inward: Flow, outward: Flow) -> Session | None:
    """Export the session with the side that `inward` comes from; None where there is none."""
    contents, sealer = inward.contents, outward.sealer
    if contents is None or sealer is None:
        return None
    return export(contents, sealer, NOBODY)


def carried(established: Established) -> tuple[int, int]:
    """Give the bytes from the client and to it so far, as `Connection.counts` gives them."""
    client = established.client
    if client is None:
        return established.to_target.carried, established.to_client.carried
    return client.received.count, client.bytes_out


def take(connection: Connection, established: Established, target: socket.socket) -> None:
    """Go on with a connection that another relay has given away, and that is in the books here."""
    relay = connection.relay
    connection.state = State(established.state)
    connection.touched = established.touched
    connection.report.go_on(established.server, established.logged)
    _resume_sessions(connection, established)
    connection.target = connection.to_target.sink = connection.to_client.source = target
    connection.target_state = relay.targets.hold(decode_identity(established.goal))
    # All of the connection is as it was, from here on, and what happens is its own business.
    courses = established.to_target, established.to_client
    for flow, course in zip((connection.to_target, connection.to_client), courses, strict=True):
        flow.ended = course.ended
        flow.carried = course.carried
    connection.watch()
    for flow, course in zip((connection.to_target, connection.to_client), courses, strict=True):
        if connection not in relay.connections:
            return
        if course.pending is not None:
            flow.hold(course.pending)
        elif not course.ended:
            flow.resume()


def _resume_sessions(connection: Connection, established: Established) -> None:
    client, target = established.client, established.target
    to_target, to_client = connection.to_target, connection.to_client
    if target is not None:
        to_client.reader = RecordReader(target)
        to_target.writer = RecordWriter(target)
        target.wipe()
    if client is None:
        return
    sock, suite = connection.client, client.suite
    if client.write.in_kernel:
        outlet = KernelWriter(sock, suite, client.write, client.bytes_out)
        connection.to_client = ToKernel(to_client, outlet)
    else:
        to_client.writer = RecordWriter(client)
    if client.read.in_kernel:
        inlet = KernelReader(sock, suite, client.read, client.role, client.received)
        connection.to_target = FromKernel(to_target, inlet)
    else:
        to_target.reader = RecordReader(client)
    client.wipe()
