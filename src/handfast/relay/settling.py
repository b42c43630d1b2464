"""Bring a client's session to a point between two records, where the kernel can take all of it.

An acceptor hands a session over as it comes: there may be ciphertext that was read and not opened,
and sealed bytes that the socket did not take. What is whole of the former is opened; of a record
that has begun, the rest is read, and no more. The client may be slow with it, so there is a limit:
then the session stays where it is, which is no harm, for its value can travel at any moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from handfast.errors import PeerError
from handfast.relay.state import State

if TYPE_CHECKING:
    from handfast.relay.connection import Connection
    from handfast.tls.reader import RecordReader

SETTLE_SECONDS: Final = 1.0
"""How long the rest of a record is waited for at most."""


class Settling:
    """One attempt, for a connection without a target; ends with one call of `settled`.

    That is after so many seconds at the latest, and may come before `start` returns. None comes
    after `cancel`, nor when the connection ends. `data` is what was opened.
    """

    __slots__ = ("_connection", "_settled", "_timer", "data")

    def __init__(self, connection: Connection, settled: Callable[[], None], seconds: float) -> None:
        self._connection = connection
        self._settled = settled
        self._timer = connection.relay.loop.call_later(seconds, self._finish)
        self.data = b""

    def start(self) -> None:
        """Write what waits to be written, then open what waits to be opened."""
        connection = self._connection
        if connection.to_client.pending is not None:
            connection.relay.loop.add_writer(connection.client.fileno(), self._write)
        elif self._open():
            self._finish()

    def cancel(self) -> None:
        """Leave the socket alone."""
        self._timer.cancel()
        loop, descriptor = self._connection.relay.loop, self._connection.client.fileno()
        loop.remove_reader(descriptor)
        loop.remove_writer(descriptor)

    def _finish(self) -> None:
        self.cancel()
        self._settled()

    def _write(self) -> None:
        flow = self._connection.to_client
        try:
            sent = flow.sink.send(flow.pending or b"")
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._connection.broken(flow.sink, "write to", error)
            return
        left = (flow.pending or memoryview(b""))[sent:]
        flow.pending = left or None
        if flow.pending is None:
            self._connection.relay.loop.remove_writer(flow.sink.fileno())
            self.start()

    def _open(self) -> bool:
        """Open what there is; False when something is still to come, or the connection ended."""
        connection = self._connection
        reader = connection.to_target.reader
        if reader is None:
            return True
        if not self._open_all(reader):
            return False
        if (reader.update_requested or reader.renegotiation_refused) and not self._answer():
            return False
        if not reader.unread:
            return True
        connection.relay.loop.add_reader(connection.client.fileno(), self._read)
        return False

    def _open_all(self, reader: RecordReader) -> bool:
        connection = self._connection
        relay = connection.relay
        length = reader.restore(relay.buffer)
        try:
            count = reader.open(relay.buffer, length, relay.output)
        except PeerError as error:
            connection.refuse(connection.client, error)
            return False
        self.data += bytes(relay.output[:count])
        return True

    def _answer(self) -> bool:
        """Send what the client is owed; False when that waits for room, or the connection ended."""
        connection = self._connection
        connection.to_client.answer()
        if connection.state is State.CLOSED:
            return False
        if connection.to_client.pending is None:
            return True
        self.start()
        return False

    def _read(self) -> None:
        """Read what is missing of a record, or of its header."""
        connection = self._connection
        reader = connection.to_target.reader
        if reader is None:
            return
        missing = reader.missing()
        try:
            more = connection.client.recv(missing)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            connection.broken(connection.client, "read from", error)
            return
        if not more:
            connection.hung_up(connection.to_target)
            return
        reader.unread += more
        if self._open():
            self._finish()
