"""One relayed connection: a client on one side, a target on the other.

Here is how it begins and how it ends; `pump` has what goes on in between. Each side may speak TLS
with us or not: a target mostly does not, and of a connection that is passed through neither does.
The end:

- An orderly end of one side, close_notify with TLS and FIN without, is passed on as the other
  side's; what was read before it is written first, and the other direction goes on. The connection
  ends when both have ended.
- FIN without close_notify, from a side with TLS, is truncation (RFC 8446, section 6.1). The other
  side is not told of an end, so that it cannot take the part for the whole.
- After that, and after any error, the target gets RST. The client gets an alert if it has TLS with
  us, and never close_notify; else it gets RST.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from handfast.errors import BackendError, PeerError
from handfast.handover.message import Established, Passthrough
from handfast.relay.giving import facts_for
from handfast.relay.introduction import header
from handfast.relay.moving import NEVER as STAYS
from handfast.relay.moving import Transport, move_on, transport_of
from handfast.relay.patience import NEVER, deadline, overdue
from handfast.relay.pump import Flow
from handfast.relay.report import Reporter
from handfast.relay.state import Event, State, after
from handfast.relay.upstream import Reached, Upstream
from handfast.tls.alerts import Alert
from handfast.tls.reader import RecordReader
from handfast.tls.session import Session
from handfast.tls.writer import RecordWriter
from handfast.transport.lingering import take_leave
from handfast.transport.plain import reset

if TYPE_CHECKING:
    from handfast.handover.message import Handover
    from handfast.policy.clients import Decision
    from handfast.relay.plan import ListenerPlan
    from handfast.relay.relay import Relay
    from handfast.relay.targets import TargetState

Close: TypeAlias = Callable[[socket.socket], None]


class Connection:
    """A client's socket with its session, and the target's. It owns both.

    `listener` is its number: what is behind it changes from generation to generation. `place` is
    where the census counts it.
    `certificates` are the client's, as in `tls.session.Peer`. `due` is how many bytes are to be
    carried before the session moves into the kernel; while it is `aligning` for that, no more is
    read than the rest of a record.
    """

    __slots__ = (
        "aligning",
        "bucket",
        "certificates",
        "client",
        "due",
        "listener",
        "place",
        "relay",
        "report",
        "state",
        "target",
        "target_state",
        "to_client",
        "to_target",
        "touched",
        "upstream",
        "warm",
    )

    def __init__(
        self, relay: Relay, listener: ListenerPlan, client: socket.socket, handover: Handover
    ) -> None:
        """Enter it into the relay's books; `start` or `transfer.take` has to follow."""
        session = handover.session
        self.bucket = 0
        self.relay = relay
        self.client = client
        self.listener = handover.listener
        self.place = relay.column.enter(handover.listener, session.peer.address)
        self.certificates = session.peer.certificates
        self.target: socket.socket | None = None
        self.target_state: TargetState | None = None
        self.upstream: Upstream | None = None
        self.state = State.CLIENT_CONNECTED
        self.touched = relay.loop.time()
        self.report = Reporter(relay.log, listener, handover)
        self.to_target = Flow(self)
        self.to_client = Flow(self)
        self.to_target.source = self.to_client.sink = client
        self.aligning = False
        through = isinstance(session, Passthrough) or (
            isinstance(session, Established) and session.client is None
        )
        self.warm = through  # there are no keys to derive
        self.due = STAYS if through else listener.kernel_after

    def meet(self, session: Session | Passthrough) -> None:
        """Take the client's session, fresh from its handshake, or what there is in its place."""
        if isinstance(session, Session):
            self.to_target.reader = RecordReader(session)
            self.to_client.writer = RecordWriter(session)
            session.wipe()
            if session.unsent:
                self.to_client.hold(session.unsent)
        if self.due == 0:
            self.move_on()
        self.report.client_connect(session, self.transport)

    @property
    def is_passed_through(self) -> bool:
        """Tell whether the client's TLS is with the target and not with us."""
        return self.to_client.sealer is None

    @property
    def transport(self) -> Transport | None:
        """Where the client's session is; None without one."""
        return transport_of(self.to_target, self.to_client)

    def move_on(self) -> None:
        """Move what is due and can move; its flows may be others afterwards."""
        move_on(self)

    def opposite(self, flow: Flow) -> Flow:
        """Give the other direction."""
        return self.to_client if flow is self.to_target else self.to_target

    def counts(self) -> tuple[int, int]:
        """Give the bytes from the client and to it: of its plaintext, or as they were carried."""
        reader, writer = self.to_target.contents, self.to_client.sealer
        if reader is None or writer is None:
            return self.to_target.carried, self.to_client.carried
        return reader.bytes, writer.bytes

    def start(self, handover: Handover, session: Session | Passthrough) -> None:
        """Make for a target."""
        service = self.relay.generation.service(handover)
        if service is None:
            self._abort(Alert.ACCESS_DENIED, "no target for this name")
            return
        self.state = after(self.state, Event.DIALLED)
        introduction = header(service.send_proxy, session, self.client)
        early = session.unread if isinstance(session, Passthrough) else b""
        facts = None
        if isinstance(session, Session):
            listener = self.relay.generation.listeners[self.listener].plan
            facts = facts_for(service, session, listener, self.client)
        self.upstream = Upstream(self, service, introduction, early, facts)
        self.to_target.carried = len(early)
        self.upstream.start()

    def not_connected(self, error: BackendError) -> None:
        """Take that no target could be reached."""
        self.upstream = None
        if error.ours:
            self.relay.intake.pause()
        self.relay.counters.connect_failures += 1
        self.report.not_connected(self.touched, error)
        self._abort(Alert.INTERNAL_ERROR, error.reason)

    def handed_over(self, address: Any) -> None:
        """Leave the client to the application that has its session now."""
        self.upstream = None
        self.report.handed_over(address, self.touched, self.transport)
        self.relay.counters.handed_over += 1
        self.state = after(self.state, Event.HANDED_OVER)
        self._detach()
        self.client.close()

    def connected(self, reached: Reached) -> None:
        """Take the target, and let the bytes flow."""
        self.upstream = None
        self.state = after(self.state, Event.CONNECTED)
        self.target = self.to_target.sink = self.to_client.source = reached.sock
        self.target_state = reached.target
        self.report.server_connect(reached.address, self.touched)
        now = self.relay.loop.time()
        self.relay.counters.connect_seconds.add(now - self.touched)
        self.touched = now
        self.watch()
        if reached.session is not None:
            self.to_target.writer = RecordWriter(reached.session)
            self.to_client.reader = RecordReader(reached.session)
            reached.session.wipe()
        if reached.unsent:
            self.to_target.hold(reached.unsent)
        else:
            self.to_target.resume()
        if self.state is not State.CLOSED and self.to_client.pending is None:
            self.to_client.resume()

    def ended(self, flow: Flow) -> None:
        """Take the orderly end of a flow's source: stop reading, pass it on when all is written."""
        self.relay.loop.remove_reader(flow.source.fileno())
        flow.ended = True
        of_client = flow is self.to_target
        self.state = after(self.state, Event.CLIENT_CLOSED if of_client else Event.SERVER_CLOSED)
        # From now on it counts as half-closed: the end is the last that was heard of that side.
        self.touched = self.relay.loop.time()
        if self.state is not State.CLOSED:  # else that was so before, and the limit is the same
            self.watch()
        if flow.pending is None:
            self.pass_on(flow)

    def pass_on(self, flow: Flow) -> None:
        """Pass the end of a flow's source on to its sink; all data before it was written."""
        if flow is self.to_client:
            self.report.server_disconnect()
        if not flow.close() or self.state is not State.CLOSED:
            return
        if self.to_target.pending is None and self.to_client.pending is None:
            self.report.client_disconnect(self)  # its counts are final now
            self._detach()
            self.client.close()
            if self.target is not None:
                self.target.close()

    def hung_up(self, flow: Flow) -> None:
        """Take a FIN: it is the end without TLS, and truncation with it."""
        if flow.contents is None:
            self.ended(flow)
        elif flow is self.to_target:
            self._fail_client("closed without close_notify", "")
        else:
            self._fail_target("closed without close_notify", "")

    def broken(self, sock: socket.socket, doing: str, error: OSError) -> None:
        """End after an error on a socket."""
        description = error.strerror or str(error)
        if sock is not self.client:
            self._fail_target(f"{doing} the target failed", description)
        elif self.to_target.ended and self.to_client.ended:
            # Both sides had finished; only our close_notify did not arrive.
            self._fail_client("", "")
        else:
            self._fail_client(f"{doing} the client failed", description)

    def refuse(self, sock: socket.socket, error: PeerError) -> None:
        """End because a side broke the protocol; a client gets the alert that it is due."""
        if sock is self.client:
            self._abort(error.alert, error.reason)
        else:
            self._fail_target(error.reason, "")

    def deny(self, decision: Decision) -> None:
        """End because the client may no longer be here."""
        self.report.denied(self.certificates, decision)
        alert = Alert.ACCESS_DENIED if decision.alert is None else decision.alert
        self._abort(alert, f"no longer allowed: {decision.text}")

    def _fail_client(self, reason: str, description: str) -> None:
        self.report.client_disconnect(self, reason, description)
        self._drop_target(reason or "the client closed")
        self.client.close()

    def _fail_target(self, reason: str, description: str) -> None:
        self.report.server_disconnect(reason, description)
        self._abort(Alert.INTERNAL_ERROR, reason)

    def _abort(self, alert: int | None, reason: str, close: Close = reset) -> None:
        """End both sides: the target with RST, the client with an alert that reaches it."""
        sealed = b"" if alert is None else self.to_client.alert(alert)
        through = self.is_passed_through
        self.report.client_disconnect(self, reason)
        self._drop_target(reason, close)
        if through:
            reset(self.client)  # an alert of ours would mean nothing, and FIN would be an end
        else:
            take_leave(self.relay.loop, self.relay.deadlines, self.client, sealed)

    def _drop_target(self, reason: str, close: Close = reset) -> None:
        self.state = after(self.state, Event.FAILED)
        self._detach()
        if self.target is not None:
            self.report.server_disconnect(reason)
            close(self.target)

    def _detach(self) -> None:
        """Take both sockets off the event loop, and the connection out of the relay's books."""
        loop = self.relay.loop
        self.relay.deadlines.drop(self)
        for sock in (self.client, self.target):
            if sock is not None:
                loop.remove_reader(sock.fileno())
                loop.remove_writer(sock.fileno())
        if self.upstream is not None:
            self.upstream.cancel()
            self.upstream = None
        if self.target_state is not None:
            self.target_state.release()
            self.target_state = None
        self.to_target.release()
        self.to_client.release()
        self.relay.forget(self)
        self.leave()

    def leave(self) -> None:
        """Let go of the flows. They and this refer to each other: so the memory goes at once."""
        self.state = State.CLOSED
        del self.to_target, self.to_client

    def expired(self, now: float) -> None:
        """Act on the deadline: end, or rest until the next one."""
        timeouts, accepted = self.relay.timeouts, self.report.accepted
        if reason := overdue(timeouts, self.state, accepted, self.touched, now):
            self.end(reason)
        else:
            self.watch()

    def watch(self) -> None:
        """Look again when a limit will be reached, if nothing happens until then."""
        if self.target is None:
            return  # the search for one has deadlines of its own
        relay = self.relay
        when = deadline(relay.timeouts, self.state, self.report.accepted, self.touched)
        if when == NEVER:
            relay.deadlines.drop(self)
        else:
            relay.deadlines.set(self, when)

    def park(self) -> None:
        """Forget the derived keys until the next record."""
        self.warm = False
        self.to_target.park()
        self.to_client.park()

    def end(self, reason: str) -> None:
        """End a connection that is in order, for a reason of ours.

        Nothing is lost when nothing is pending, and both sides get an orderly end; else both get
        an error, as both sides of one that is passed through do: their end is not ours to make.
        """
        settled = self.to_client.is_settled() and self.to_target.is_settled()
        if self.state is not State.READY or not settled or self.is_passed_through:
            self._abort(Alert.INTERNAL_ERROR, reason)
            return
        farewell = self.to_target.alert(Alert.CLOSE_NOTIFY)
        loop, deadlines = self.relay.loop, self.relay.deadlines
        self._abort(
            Alert.CLOSE_NOTIFY, reason, lambda sock: take_leave(loop, deadlines, sock, farewell)
        )
