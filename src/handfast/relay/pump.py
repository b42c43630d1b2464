"""The two directions of a relayed connection.

They share nothing but the connection. Each reads from its source into the process's one receive
buffer, opens what its source sealed, seals it for its sink, and writes at once. Where one side
speaks no TLS with us, that step is left out; where neither does, the bytes are carried as they are.
Only what the sink does not take is copied, into `pending`; while there is any, the source is not
read, which is all the back-pressure there is: at most one batch is held.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from handfast.errors import PeerError
from handfast.relay.state import State
from handfast.tls.alerts import Alert
from handfast.transport.plain import finish

if TYPE_CHECKING:
    from handfast.relay.connection import Connection
    from handfast.tls.content import Content
    from handfast.tls.reader import RecordReader
    from handfast.tls.writer import RecordWriter
    from handfast.transport.kernel import KernelWriter


class Flow:
    """One direction. `reader` is the source's and `writer` the sink's, None without TLS.

    `ended` tells that the source has ended in order. `carried` counts the bytes where neither side
    has TLS, for else the records are counted. The socket of a target that is not connected yet is
    not there.
    """

    __slots__ = ("carried", "connection", "ended", "pending", "reader", "sink", "source", "writer")

    source: socket.socket
    sink: socket.socket

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.reader: RecordReader | None = None
        self.writer: RecordWriter | None = None
        self.pending: memoryview | None = None
        self.ended = False
        self.carried = 0

    @property
    def contents(self) -> Content | None:
        """What knows how far the source's session has come; None without TLS."""
        return self.reader

    @property
    def sealer(self) -> RecordWriter | KernelWriter | None:
        """What knows how far the sink's session has come; None without TLS."""
        return self.writer

    def resume(self) -> None:
        """Read from the source, and first what was read before.

        Of a session that came here with ciphertext, there may be whole records in that.
        """
        relay = self.connection.relay
        relay.loop.add_reader(self.source.fileno(), self.readable)
        reader = self.reader
        if reader is not None and (reader.unread or reader.closed):
            self.carry(reader.restore(relay.buffer))

    def readable(self) -> None:
        """Read from the source once, open and seal, and write to the sink."""
        connection = self.connection
        relay = connection.relay
        reader = self.reader
        offset = 0
        if reader is None:
            room = relay.chunk
        else:
            room = relay.buffer
            if reader.unread:
                missing = reader.missing() if connection.aligning else len(room)
                offset = reader.restore(room)
                room = room[offset : offset + missing]
        try:
            count = self.source.recv_into(room)
        except (BlockingIOError, InterruptedError):
            if reader is not None:
                reader.unread = bytes(relay.buffer[:offset])
            return
        except OSError as error:
            connection.broken(self.source, "read from", error)
            return
        if not count:
            connection.hung_up(self)
            return
        connection.touched = relay.loop.time()
        self.carry(offset + count)

    def carry(self, length: int) -> None:
        """Carry what lies in the receive buffer to the sink."""
        connection = self.connection
        relay = connection.relay
        reader, writer = self.reader, self.writer
        if not connection.warm:
            relay.warm_up(connection)
        data, room = relay.buffer, relay.output
        blamed = self.source
        try:
            if reader is not None:
                length = reader.open(data, length, room)
                data, room = room, relay.resealed
            if writer is None:
                if reader is None:
                    self.carried += length
            elif length:
                blamed = self.sink
                length = writer.seal(data, length, room)
                data = room
        except PeerError as error:
            connection.refuse(blamed, error)
            return
        if length and not self._send(data[:length]):
            return
        if reader is not None:
            if reader.update_requested or reader.renegotiation_refused:
                connection.opposite(self).answer()
            if reader.closed and not self.ended and connection.state is not State.CLOSED:
                connection.ended(self)
        if connection.due >= 0:
            connection.move_on()

    def _send(self, data: memoryview, flags: int = 0) -> bool:
        """Write to the sink; False when that failed and the connection is at its end."""
        try:
            sent = self.sink.send(data, flags)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.connection.broken(self.sink, "write to", error)
            return False
        if sent < len(data):
            self.hold(bytes(data[sent:]))
        return True

    def hold(self, data: bytes) -> None:
        """Keep what the sink does not take yet, and read no more from the source."""
        connection = self.connection
        loop = connection.relay.loop
        self.pending = memoryview(data)
        if connection.target is not None:
            loop.remove_reader(self.source.fileno())
        loop.add_writer(self.sink.fileno(), self._writable)

    def take_pending(self) -> bytes | None:
        """Give what waits to be written, for another relay to write; None when nothing waits."""
        pending, self.pending = self.pending, None
        return None if pending is None else bytes(pending)

    def answer(self) -> bool:
        """Seal what the sink is owed, a KeyUpdate or no_renegotiation; True if more can follow.

        It waits while anything is pending, so that a peer that asks without reading does not make
        us hold more and more; no data is sealed before it either.
        """
        connection = self.connection
        peer, writer = connection.opposite(self).contents, self.writer
        if peer is not None and writer is not None and self.pending is None and not writer.closed:
            if peer.update_requested:
                peer.update_requested = False
                self._send(memoryview(writer.key_update(request=False)))
            elif peer.renegotiation_refused:
                peer.renegotiation_refused = False
                self._send(memoryview(writer.alert(Alert.NO_RENEGOTIATION)))
        return self.pending is None and connection in connection.relay.connections

    def close(self) -> bool:
        """Send the end, once all is written: close_notify and FIN; False when the sink is gone."""
        writer = self.writer
        # When both sides have ended, closing says the same.
        finishes = self.connection.state is not State.CLOSED
        if writer is not None and not writer.closed:
            sealed = memoryview(writer.alert(Alert.CLOSE_NOTIFY))
            # FIN takes it along: one segment less is 6 us less of the kernel's time.
            if not self._send(sealed, socket.MSG_MORE if finishes else 0):
                return False
        if self.pending is None and finishes:
            finish(self.sink)
        return True

    def is_settled(self) -> bool:
        """Tell whether all that was read is in the sink's queue."""
        return self.pending is None

    def alert(self, alert: int) -> bytes:
        """Seal a last alert; nothing when the sink could not read it."""
        writer = self.writer
        if writer is None or writer.closed or self.pending is not None:
            return b""
        return writer.alert(alert)

    def park(self) -> None:
        """Forget the derived keys until the next record."""
        if self.reader is not None:
            self.reader.park()
        if self.writer is not None:
            self.writer.park()

    def _writable(self) -> None:
        connection = self.connection
        pending = self.pending
        if pending is None:
            return
        try:
            sent = self.sink.send(pending)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            connection.broken(self.sink, "write to", error)
            return
        loop = connection.relay.loop
        connection.touched = loop.time()
        if sent < len(pending):
            self.pending = pending[sent:]
            return
        self.pending = None
        loop.remove_writer(self.sink.fileno())
        if not self.answer():
            return
        if self.ended:
            connection.pass_on(self)
        elif connection.target is not None:
            self.resume()
        if connection.due >= 0:
            connection.move_on()

    def release(self) -> None:
        """Give back what is lent, and overwrite the secrets; the connection is at its end."""
        for end in (self.contents, self.sealer):
            if end is not None:
                end.forget()
