"""One relayed connection: a TLS client on one side, a plain target on the other.

Here is how it begins and how it ends; `pump` has what goes on in between. The end:

- close_notify from the client becomes FIN to the target, FIN from the target becomes close_notify
  to the client; in both cases what was read before it is written first, and the other direction
  goes on. The connection ends when both have ended.
- FIN from the client without close_notify is truncation (RFC 8446, section 6.1). The target gets
  RST, so that it cannot take the part for the whole; so it does after any error.
- When the target fails, the client gets an internal_error alert and never close_notify.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from handfast.config import UnixAddress
from handfast.errors import BackendError, PeerError
from handfast.relay.dial import Dial
from handfast.relay.pump import ToClient, ToTarget
from handfast.relay.report import Reporter
from handfast.relay.resolver import Endpoint
from handfast.relay.state import Event, State, after
from handfast.tls.alerts import Alert
from handfast.tls.reader import RecordReader
from handfast.tls.writer import RecordWriter
from handfast.transport.lingering import Lingering
from handfast.transport.plain import finish, reset

if TYPE_CHECKING:
    from handfast.handover.message import Handover
    from handfast.relay.relay import Relay, Service


class Connection:
    """A client's socket with its session, and the target's socket. It owns both."""

    __slots__ = (
        "bucket",
        "client",
        "client_fd",
        "dial",
        "reader",
        "relay",
        "report",
        "service",
        "state",
        "target",
        "target_ended",
        "target_fd",
        "to_client",
        "to_target",
        "touched",
        "warm",
        "writer",
    )

    target: socket.socket

    def __init__(
        self, relay: Relay, service: Service, client: socket.socket, handover: Handover
    ) -> None:
        self.bucket = 0
        self.relay = relay
        self.service = service
        self.client = client
        self.client_fd = client.fileno()
        self.target_fd = -1
        self.target_ended = False
        self.state = State.CLIENT_CONNECTED
        session = handover.session
        self.reader = RecordReader(session)
        self.writer = RecordWriter(session)
        self.report = Reporter(relay.log, service, session, handover.accepted)
        self.dial: Dial | None = None
        self.to_target = ToTarget(self)
        self.to_client = ToClient(self)
        self.touched = relay.loop.time()
        self.warm = False
        if session.unsent:
            self.to_client.hold(session.unsent)
        self.report.client_connect(session)

    def start(self) -> None:
        """Look the target up and dial it."""
        self.relay.deadlines.set(self, self.touched + self.relay.timeouts.connect)
        self.relay.resolver.resolve(self.service.target, self._resolved)

    def _resolved(self, answer: list[Endpoint] | BackendError) -> None:
        if self.state is State.CLOSED:
            return  # it ended while the name was looked up
        self.state = after(self.state, Event.DIALLED)
        if isinstance(answer, BackendError):
            self._not_connected(answer)
            return
        dial = Dial(self.relay.loop, answer, self._connected, self._not_connected)
        self.dial = dial
        dial.start()

    def _not_connected(self, error: BackendError) -> None:
        self.relay.counters.connect_failures += 1
        self.report.not_connected(self.touched, error.reason, error.description)
        self._abort(Alert.INTERNAL_ERROR, error.reason)

    def _connected(self, target: socket.socket, address: Any) -> None:
        self.dial = None
        self.state = after(self.state, Event.CONNECTED)
        self.target = target
        self.target_fd = target.fileno()
        if isinstance(self.service.target, UnixAddress):
            self.report.server_connect(str(self.service.target), 0, self.touched)
        else:
            self.report.server_connect(address[0], address[1], self.touched)
        loop = self.relay.loop
        self.touched = loop.time()
        self._watch_quiet()
        if self.to_client.pending is None:
            loop.add_reader(self.target_fd, self.to_client.readable)
        loop.add_reader(self.client_fd, self.to_target.readable)
        if self.reader.unread or self.reader.closed:
            self.to_target.opened(self.reader.restore(self.relay.buffer))

    def client_closed(self) -> None:
        """Take the client's close_notify: stop reading, and pass it on when all is written."""
        self.relay.loop.remove_reader(self.client_fd)
        self.state = after(self.state, Event.CLIENT_CLOSED)
        self._watch_half_closed()
        if self.to_target.pending is None:
            self.finish_target()

    def finish_target(self) -> None:
        """Pass the client's end on to the target; all data before it was written."""
        self.report.client_disconnect(self)
        finish(self.target)
        self._end_if_done()

    def target_closed(self) -> None:
        """Take the target's FIN; all that it sent before is written or pending."""
        self.relay.loop.remove_reader(self.target_fd)
        self.target_ended = True
        self.state = after(self.state, Event.SERVER_CLOSED)
        self._watch_half_closed()
        self.report.server_disconnect()
        self.finish_client()

    def finish_client(self) -> None:
        """Pass the target's end on to the client; all data before it was written."""
        if self.to_client.close():
            self._end_if_done()

    def _end_if_done(self) -> None:
        done = self.state is State.CLOSED
        if done and self.to_target.pending is None and self.to_client.pending is None:
            self._detach()
            self.target.close()
            self.client.close()

    def client_truncated(self) -> None:
        """Take a FIN from the client that no close_notify announced."""
        self._fail_client("closed without close_notify", "")

    def client_failed(self, reason: str, error: OSError) -> None:
        """End after an error on the client's socket."""
        if self.reader.closed and self.target_ended:
            # Both sides had finished; only our close_notify did not arrive.
            self._fail_client("", "")
        else:
            self._fail_client(reason, error.strerror or str(error))

    def _fail_client(self, reason: str, description: str) -> None:
        self.report.client_disconnect(self, reason, description)
        self._drop_target(reason or "the client closed", reset)
        self.client.close()

    def refuse(self, error: PeerError) -> None:
        """End because the client broke the protocol, with the alert that it is due."""
        self.report.client_disconnect(self, error.reason)
        self._abort(error.alert, error.reason)

    def target_failed(self, reason: str, error: OSError) -> None:
        """End after an error on the target's socket."""
        self.report.server_disconnect(reason, error.strerror or str(error))
        self._abort(Alert.INTERNAL_ERROR, reason)

    def _abort(
        self,
        alert: int | None,
        reason: str,
        close_target: Callable[[socket.socket], None] = reset,
    ) -> None:
        """End both sides: the target with RST, the client with an alert that reaches it."""
        sealed = b""
        if alert is not None and not self.writer.closed and self.to_client.pending is None:
            sealed = self.writer.alert(alert)
        self.report.client_disconnect(self, reason)
        self._drop_target(reason, close_target)
        try:
            if sealed:
                self.client.send(sealed)
        except OSError:
            self.client.close()  # it is gone or takes no more: there is nobody to tell
            return
        Lingering(self.relay.loop, self.relay.deadlines, self.client)

    def _drop_target(self, reason: str, close: Callable[[socket.socket], None]) -> None:
        self.state = after(self.state, Event.FAILED)
        self._detach()
        if self.target_fd >= 0:
            self.report.server_disconnect(reason)
            close(self.target)

    def _detach(self) -> None:
        """Take both sockets off the event loop, and the connection out of the relay's books."""
        loop = self.relay.loop
        self.relay.deadlines.drop(self)
        loop.remove_reader(self.client_fd)
        loop.remove_writer(self.client_fd)
        if self.target_fd >= 0:
            loop.remove_reader(self.target_fd)
            loop.remove_writer(self.target_fd)
        if self.dial is not None:
            self.dial.cancel()
            self.dial = None
        # They and this refer to each other: without them the memory goes back at once.
        del self.to_target, self.to_client
        self.relay.forget(self)

    def expired(self, now: float) -> None:
        """Act on the deadline: connect, idle or half-closed; else rest, and set the next one."""
        timeouts = self.relay.timeouts
        if self.state in (State.CLIENT_CONNECTED, State.SERVER_CONNECTING):
            self._not_connected(BackendError(f"no connection after {timeouts.connect:g} s"))
            return
        limit = self._limit()
        quiet = now - self.touched
        if limit and quiet >= limit:
            idle = self.state is State.READY
            self.end(f"idle for {limit:g} s" if idle else "half-closed too long")
            return
        self._watch_quiet()

    def _limit(self) -> float:
        """Give the seconds that the connection may be quiet; 0 is for ever."""
        timeouts = self.relay.timeouts
        return timeouts.idle if self.state is State.READY else timeouts.half_closed

    def _watch_half_closed(self) -> None:
        """Begin to count: the end of one side is the last that was heard of it."""
        self.touched = self.relay.loop.time()
        self._watch_quiet()

    def _watch_quiet(self) -> None:
        """Look again when the limit will be reached, if nothing happens until then."""
        if limit := self._limit():
            self.relay.deadlines.set(self, self.touched + limit)
        else:
            self.relay.deadlines.drop(self)

    def park(self) -> None:
        """Forget the derived keys until the next record."""
        self.warm = False
        self.reader.park()
        self.writer.park()

    def end(self, reason: str) -> None:
        """End a connection that is in order, for a reason of ours.

        Nothing is lost when nothing is pending, and the client gets close_notify; else both sides
        get an error.
        """
        orderly = self.state is State.READY and not self.to_client.pending
        if orderly and not self.to_target.pending:
            self._abort(Alert.CLOSE_NOTIFY, reason, socket.socket.close)
        else:
            self._abort(Alert.INTERNAL_ERROR, reason)
