"""When a client's session moves into the kernel, and how: our direction first, then the peer's.

Each moves on its own, where one record ends and nothing waits to be written. If the kernel refuses
one, that is where the session stays, and the peer does not notice: our direction in the kernel and
the peer's in user space is as good as both in one place.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from handfast.relay.splicing import FromKernel, ToKernel
from handfast.relay.state import State
from handfast.transport import kernel

if TYPE_CHECKING:
    from handfast.relay.connection import Connection
    from handfast.relay.pump import Flow


NEVER: Final = -1
"""Of `Connection.due`: it stays where it is."""


class Transport(Enum):
    """Where the records of a client's session are sealed and opened."""

    USER = "user"
    KERNEL = "kernel"
    KERNEL_TX = "kernel-tx"


def transport_of(to_target: Flow, to_client: Flow) -> Transport | None:
    """Tell where a client's session is; None where it has none with us."""
    if isinstance(to_target, FromKernel):
        return Transport.KERNEL
    if isinstance(to_client, ToKernel):
        return Transport.KERNEL_TX
    return None if to_client.sealer is None else Transport.USER


def move_on(connection: Connection) -> None:
    """Move what can move now, of a connection that is `due`; nothing may follow in a callback."""
    if connection.state in (State.CLOSED, State.CLIENT_DISCONNECTED, State.SERVER_DISCONNECTED):
        # It has not long to go, and the kernel wants both sides open.
        connection.due = NEVER
        connection.aligning = False
    elif sum(connection.counts()) >= connection.due and _move_writer(connection):
        _move_reader(connection)


def _move_writer(connection: Connection) -> bool:
    """Move our direction; True when it is in the kernel."""
    before = connection.to_client
    if isinstance(before, ToKernel):
        return True
    writer = before.writer
    if writer is None or before.pending is not None:
        return False
    support = connection.relay.generation.plan.kernel
    if writer.suite.code not in support.tx:
        connection.due = NEVER
        return False
    try:
        kernel.enable(connection.client)
        outlet = kernel.KernelWriter.move(connection.client, writer, rekey=support.rekey)
    except OSError as error:
        _refused(connection, "tx", error)
        return False
    connection.to_client = ToKernel(before, outlet)
    return True


def _move_reader(connection: Connection) -> None:
    before = connection.to_target
    reader = before.reader
    if reader is None or before.pending is not None:
        return
    if reader.update_requested or reader.renegotiation_refused:
        return  # the answer to it waits for room
    support = connection.relay.generation.plan.kernel
    if reader.suite.code not in support.rx:
        connection.due = NEVER
    elif reader.unread:
        connection.aligning = True  # read up to the end of that record, and no further
    else:
        try:
            inlet = kernel.KernelReader.move(connection.client, reader, rekey=support.rekey)
        except OSError as error:
            _refused(connection, "rx", error)
            return
        connection.to_target = FromKernel(before, inlet)
        connection.due = NEVER
        connection.aligning = False


def _refused(connection: Connection, direction: Literal["tx", "rx"], error: OSError) -> None:
    connection.due = NEVER
    connection.aligning = False
    connection.relay.counters.kernel_refused += 1
    connection.report.kernel_refused(direction, error.strerror or str(error))
