"""The two directions of a relayed connection.

They share nothing but the connection. Each reads from its source into the process's one receive
buffer, opens or seals into the process's one output buffer, and writes to its sink at once. Only
what the sink does not take is copied, into `pending`; while there is any, the source is not read,
which is all the back-pressure there is: at most one batch is held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from handfast.errors import PeerError
from handfast.relay.state import State
from handfast.tls.alerts import Alert
from handfast.transport.plain import finish

if TYPE_CHECKING:
    from handfast.relay.connection import Connection


class ToTarget:
    """From the client to the target: opens."""

    __slots__ = ("connection", "pending")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pending: memoryview | None = None

    def readable(self) -> None:
        """Read from the client once, open, and write to the target."""
        connection = self.connection
        reader = connection.reader
        relay = connection.relay
        buffer = relay.buffer
        offset = reader.restore(buffer)
        try:
            count = connection.client.recv_into(buffer[offset:] if offset else buffer)
        except (BlockingIOError, InterruptedError):
            reader.unread = bytes(buffer[:offset])
            return
        except OSError as error:
            connection.client_failed("read from the client failed", error)
            return
        if not count:
            connection.client_truncated()
            return
        connection.touched = relay.loop.time()
        self.opened(offset + count)

    def opened(self, length: int) -> None:
        """Open what lies in the receive buffer, and write it to the target."""
        connection = self.connection
        reader = connection.reader
        relay = connection.relay
        output = relay.output
        if not connection.warm:
            relay.warm_up(connection)
        try:
            count = reader.open(relay.buffer, length, output)
        except PeerError as error:
            connection.refuse(error)
            return
        if count:
            target = connection.target
            try:
                sent = target.send(output[:count])
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                connection.target_failed("write to the target failed", error)
                return
            if sent < count:
                self._hold(bytes(output[sent:count]))
        if reader.update_requested or reader.renegotiation_refused:
            connection.to_client.answer()
        if reader.closed and connection.state is not State.CLOSED:
            connection.client_closed()

    def _hold(self, data: bytes) -> None:
        connection = self.connection
        self.pending = memoryview(data)
        connection.relay.loop.remove_reader(connection.client_fd)
        connection.relay.loop.add_writer(connection.target_fd, self._writable)

    def _writable(self) -> None:
        connection = self.connection
        pending = self.pending
        if pending is None:
            return
        try:
            sent = connection.target.send(pending)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            connection.target_failed("write to the target failed", error)
            return
        loop = connection.relay.loop
        connection.touched = loop.time()
        if sent < len(pending):
            self.pending = pending[sent:]
            return
        self.pending = None
        loop.remove_writer(connection.target_fd)
        if connection.reader.closed:
            connection.finish_target()
        else:
            loop.add_reader(connection.client_fd, self.readable)


class ToClient:
    """From the target to the client: seals."""

    __slots__ = ("connection", "pending")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pending: memoryview | None = None

    def readable(self) -> None:
        """Read from the target once, seal, and write to the client."""
        connection = self.connection
        relay = connection.relay
        try:
            count = connection.target.recv_into(relay.chunk)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            connection.target_failed("read from the target failed", error)
            return
        if not count:
            connection.target_closed()
            return
        connection.touched = relay.loop.time()
        if not connection.warm:
            relay.warm_up(connection)
        try:
            length = connection.writer.seal(relay.buffer, count, relay.output)
        except PeerError as error:
            connection.refuse(error)
            return
        self._send(relay.output[:length])

    def _send(self, sealed: memoryview) -> bool:
        """Write to the client; False when that failed and the connection is at its end."""
        connection = self.connection
        try:
            sent = connection.client.send(sealed)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            connection.client_failed("write to the client failed", error)
            return False
        if sent < len(sealed):
            self.hold(bytes(sealed[sent:]))
        return True

    def hold(self, sealed: bytes) -> None:
        """Keep what the client does not take yet, and read no more from the target."""
        connection = self.connection
        loop = connection.relay.loop
        self.pending = memoryview(sealed)
        if connection.target_fd >= 0:
            loop.remove_reader(connection.target_fd)
        loop.add_writer(connection.client_fd, self._writable)

    def answer(self) -> bool:
        """Seal what the client is owed, a KeyUpdate or no_renegotiation; True if more can follow.

        It waits while anything is pending, so that a client that asks without reading does not
        make us hold more and more; no data is sealed before it either.
        """
        connection = self.connection
        reader, writer = connection.reader, connection.writer
        if self.pending is None and not writer.closed:
            if reader.update_requested:
                reader.update_requested = False
                self._send(memoryview(writer.key_update(request=False)))
            elif reader.renegotiation_refused:
                reader.renegotiation_refused = False
                self._send(memoryview(writer.alert(Alert.NO_RENEGOTIATION)))
        return self.pending is None and connection.state is not State.CLOSED

    def close(self) -> bool:
        """Seal close_notify and send FIN, once; False when the client is gone."""
        connection = self.connection
        writer = connection.writer
        if not writer.closed and not self._send(memoryview(writer.alert(Alert.CLOSE_NOTIFY))):
            return False
        if self.pending is None and connection.state is not State.CLOSED:
            finish(connection.client)  # when both sides have ended, closing says the same
        return True

    def _writable(self) -> None:
        connection = self.connection
        pending = self.pending
        if pending is None:
            return
        try:
            sent = connection.client.send(pending)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            connection.client_failed("write to the client failed", error)
            return
        loop = connection.relay.loop
        connection.touched = loop.time()
        if sent < len(pending):
            self.pending = pending[sent:]
            return
        self.pending = None
        loop.remove_writer(connection.client_fd)
        if not self.answer():
            return
        if connection.target_ended:
            connection.finish_client()
        elif connection.target_fd >= 0:
            loop.add_reader(connection.target_fd, self.readable)
