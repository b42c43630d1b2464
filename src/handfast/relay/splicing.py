"""The two directions of a connection whose client's session is in the kernel.

They are as in `pump`, with the client's socket reading and writing plaintext. Where the target
speaks no TLS with us, the bytes never come here: they go from socket to pipe to socket, and what
the sink does not take waits in the pipe, which the connection keeps so long. Where it does, or
where no pipe can be had, they are copied through the relay's buffers.

Before its last record a socket has to be writable. The kernel keeps the rest of a sealed record for
which a socket has no room (tls_push_sg in net/tls), and what is not in the socket's queue FIN would
leave behind; a socket that is writable has room for it, and the last record takes it along. On
loopback, where a record goes into the queue as one piece, that was never seen to happen.

Old kernels (6.1, for one) call a socket readable that has a part of a record, which nobody can read
yet. Where that is met, the socket is watched for changes only, and read until there is nothing.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from typing import Final

from handfast.errors import PeerError
from handfast.relay.pump import Flow
from handfast.relay.state import State
from handfast.tls.alerts import Alert
from handfast.tls.content import Content
from handfast.tls.record import MAX_PLAINTEXT
from handfast.transport.kernel import KernelReader, KernelWriter
from handfast.transport.pipes import Pipe

_PROBLEMS: Final = {
    errno.EBADMSG: ("a record does not authenticate", Alert.BAD_RECORD_MAC),
    errno.EMSGSIZE: ("a record is too long", Alert.RECORD_OVERFLOW),
    errno.EINVAL: ("unprotected or unknown record", Alert.UNEXPECTED_MESSAGE),
}
"""What the kernel makes of a record that it cannot open."""

_NO_DATA: Final = {errno.EIO, errno.EINVAL}
"""What reading and splicing say of a record that is no data; EINVAL also of one that is none."""

# What `FromKernel._take` gives when there was no data.
_NOTHING: Final = -1
_OTHER: Final = -2


class _Splicing(Flow):
    """What both directions share: a pipe in the place of the pending bytes."""

    __slots__ = ("held",)

    def __init__(self, before: Flow) -> None:
        """Take the place of a flow of the same connection that has nothing pending."""
        connection = before.connection
        super().__init__(connection)
        self.reader, self.writer = before.reader, before.writer
        self.ended = before.ended
        self.held: Pipe | None = None
        if connection.target is not None:
            self.source, self.sink = before.source, before.sink
            if not self.ended:
                connection.relay.loop.add_reader(self.source.fileno(), self.readable)

    def _pour(self, pipe: Pipe) -> bool:
        """Write what a pipe has; False when that failed and the connection is at its end."""
        connection = self.connection
        try:
            pipe.pour(self.sink.fileno())
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            connection.relay.pipes.give_back(pipe)
            self.held = None
            connection.broken(self.sink, "write to", error)
            return False
        if len(pipe):
            if self.held is None:
                self.held = pipe
                self.hold(b"")
        else:
            self.held = None
            connection.relay.pipes.give_back(pipe)
        return True

    def take_pending(self) -> bytes | None:
        """Give what waits, in the pipe first, which is given back."""
        pipe, self.held = self.held, None
        rest = super().take_pending()
        if pipe is None or rest is None:
            return rest
        data = pipe.drain()
        self.connection.relay.pipes.give_back(pipe)
        return data + rest

    def _writable(self) -> None:
        pipe = self.held
        if pipe is not None:
            if not self._pour(pipe):
                return
            self.connection.touched = self.connection.relay.loop.time()
            if len(pipe):
                return
        super()._writable()

    def release(self) -> None:
        """Give the pipe back too, with what is in it."""
        super().release()
        if self.held is not None:
            self.connection.relay.pipes.give_back(self.held)
            self.held = None


class FromKernel(_Splicing):
    """From a client whose records the kernel opens."""

    __slots__ = ("_coming", "_trouble", "inlet")

    def __init__(self, before: Flow, inlet: KernelReader) -> None:
        self.inlet = inlet
        self._coming = False
        self._trouble: OSError | None = None
        self.source = before.source
        super().__init__(before)
        self.reader = None

    @property
    def contents(self) -> Content:
        """What knows how far the source's session has come."""
        return self.inlet

    def readable(self) -> None:
        """Move what the source has to the sink, and see what is next if that is no data."""
        relay = self.connection.relay
        pipe = relay.pipes.take() if self.writer is None else None
        count = self._take(pipe)
        if count > 0 and self._account(count):
            if pipe is None:
                self.carry(count)
            else:
                self._pour(pipe)
        else:
            if pipe is not None:
                relay.pipes.give_back(pipe)
            if count in {_OTHER, 0}:
                self._receive(empty=count == 0)
        trouble, self._trouble = self._trouble, None
        if trouble is not None and self.connection in relay.connections:
            self._handle(trouble)
        if (
            count != _NOTHING
            and not self._coming
            and self._may_go_on()
            and relay.loop.watches_edges(self.source.fileno())
        ):
            self._coming = True
            relay.loop.call_soon(self._go_on)

    def _handle(self, error: OSError) -> None:
        """Take what came behind data that was read: some errors are told of once only."""
        if error.errno in _NO_DATA:
            self._receive(empty=False)
        else:
            self._blame(error)

    def _may_go_on(self) -> bool:
        if self.connection.state is State.CLOSED:
            return False
        return self.pending is None and not self.ended

    def _go_on(self) -> None:
        self._coming = False
        if self._may_go_on():
            self.readable()

    def _take(self, pipe: Pipe | None) -> int:
        """Take data, into the pipe or the relay's buffer; give its length, 0 at the end."""
        try:
            if pipe is None:
                return self.source.recv_into(self.connection.relay.chunk)
            return self._fill(pipe)
        except (BlockingIOError, InterruptedError):
            self.connection.relay.loop.watch_edges(self.source.fileno())
        except OSError as error:
            if error.errno in _NO_DATA:
                return _OTHER
            self._blame(error)
        return _NOTHING

    def _fill(self, pipe: Pipe) -> int:
        """Take records as long as they are full ones, behind which there may be more."""
        source = self.source.fileno()
        total = count = pipe.fill(source)
        for _ in range(1, pipe.records):
            if count < MAX_PLAINTEXT:
                break
            try:
                count = pipe.fill(source)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._trouble = error
                break
            total += count
        return total

    def _account(self, count: int) -> bool:
        connection = self.connection
        connection.touched = connection.relay.loop.time()
        try:
            self.inlet.data(count)
        except PeerError as error:
            connection.refuse(self.source, error)
            return False
        return True

    def _receive(self, *, empty: bool) -> None:
        """Take one record of any kind, or the end. `empty`: there was a record without data."""
        connection = self.connection
        relay, inlet = connection.relay, self.inlet
        try:
            kind, length = inlet.receive(relay.buffer)
            if not kind:
                connection.hung_up(self)
                return
            connection.touched = relay.loop.time()
            length = inlet.take(kind, relay.buffer, length)
        except (BlockingIOError, InterruptedError):
            # An empty record was taken already; and what is no record is no longer there.
            if empty:
                self._account(0)
            else:
                self._blame(OSError(errno.EINVAL, ""))
            return
        except OSError as error:
            self._blame(error)
            return
        except PeerError as error:
            connection.refuse(self.source, error)
            return
        if length:
            self.carry(length)
            return
        if inlet.update_requested or inlet.renegotiation_refused:
            connection.opposite(self).answer()
        if inlet.closed and not self.ended and connection.state is not State.CLOSED:
            connection.ended(self)

    def _blame(self, error: OSError) -> None:
        # The kernel keeps it with the socket, and would refuse our alert because of it.
        self.source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        problem = _PROBLEMS.get(error.errno or 0)
        if problem is None:
            self.connection.broken(self.source, "read from", error)
        else:
            self.connection.refuse(self.source, PeerError(problem[0], alert=problem[1]))


class ToKernel(_Splicing):
    """To a client whose records the kernel seals."""

    __slots__ = ("outlet",)

    def __init__(self, before: Flow, outlet: KernelWriter) -> None:
        self.outlet = outlet
        self.sink = before.sink
        super().__init__(before)
        self.writer = None

    @property
    def sealer(self) -> KernelWriter:
        """What knows how far the sink's session has come."""
        return self.outlet

    def readable(self) -> None:
        """Move what the source has to the sink."""
        connection = self.connection
        try:
            self.outlet.keep_limits()
        except (BlockingIOError, InterruptedError):
            pass  # there is room for some more records before it has to be
        except OSError as error:
            connection.broken(self.sink, "write to", error)
            return
        except PeerError as error:
            connection.refuse(self.sink, error)
            return
        pipe = connection.relay.pipes.take() if self.reader is None else None
        if pipe is None:
            super().readable()
        else:
            self._splice(pipe)

    def _splice(self, pipe: Pipe) -> None:
        connection = self.connection
        try:
            count = pipe.fill(self.source.fileno())
        except (BlockingIOError, InterruptedError):
            # Perhaps because of an urgent byte, at which splice stops for ever and recv does not.
            connection.relay.pipes.give_back(pipe)
            super().readable()
            return
        except OSError as error:
            connection.relay.pipes.give_back(pipe)
            connection.broken(self.source, "read from", error)
            return
        if not count:
            connection.relay.pipes.give_back(pipe)
            connection.hung_up(self)
            return
        connection.touched = connection.relay.loop.time()
        self.outlet.account(count)
        self._pour(pipe)

    def _send(self, data: memoryview, flags: int = 0) -> bool:
        self.outlet.account(len(data))
        return super()._send(data, flags)

    def _writable(self) -> None:
        self.outlet.account(0)  # what was cut in two makes one more record
        super()._writable()

    def answer(self) -> bool:
        """Send what the sink is owed, as `Flow.answer` does."""
        connection, outlet = self.connection, self.outlet
        peer = connection.opposite(self).contents
        try:
            if peer is None or self.pending is not None or outlet.closed:
                pass
            elif peer.update_requested:
                outlet.key_update(request=False)
                peer.update_requested = False
            elif peer.renegotiation_refused:
                outlet.alert(Alert.NO_RENEGOTIATION)
                peer.renegotiation_refused = False
        except (BlockingIOError, InterruptedError):
            self.hold(b"")
        except OSError as error:
            connection.broken(self.sink, "write to", error)
        except PeerError as error:
            connection.refuse(self.sink, error)
        return self.pending is None and connection in connection.relay.connections

    def is_settled(self) -> bool:
        """Tell whether all that was read is in the sink's queue: what the kernel may hold, too."""
        return self.pending is None and _is_writable(self.sink)

    def close(self) -> bool:
        """Send the end, once all is written: close_notify and FIN; False when the sink is gone."""
        if not self.outlet.closed:
            try:
                if not _is_writable(self.sink):
                    self.hold(b"")
                    return True
                self.outlet.alert(Alert.CLOSE_NOTIFY)
            except (BlockingIOError, InterruptedError):
                self.hold(b"")
                return True
            except OSError as error:
                self.connection.broken(self.sink, "write to", error)
                return False
        return super().close()

    def alert(self, alert: int) -> bytes:
        """Send a last alert, if the sink can read it; nothing is left to be sent by others."""
        if not self.outlet.closed and self.pending is None:
            with contextlib.suppress(OSError):  # then there is nobody to tell
                if _is_writable(self.connection.client):
                    self.outlet.alert(alert)
        return b""


def _is_writable(sock: socket.socket) -> bool:
    poll = select.poll()  # not select: a relay has many descriptors
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))
