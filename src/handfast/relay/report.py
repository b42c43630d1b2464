"""What a relayed connection tells the log: the four subevents of `proxy`, each at most once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from handfast.observe.events import Auth, KernelRefused, Proxy
from handfast.tls.alerts import alert_name
from handfast.tls.certificates import certificate_fields
from handfast.tls.keys import VERSION_NAMES
from handfast.tls.session import Peer, Session

if TYPE_CHECKING:
    from handfast.errors import BackendError
    from handfast.handover.message import Handover, Passthrough
    from handfast.observe.log import Log
    from handfast.policy.clients import Decision
    from handfast.relay.connection import Connection
    from handfast.relay.moving import Transport
    from handfast.relay.plan import ListenerPlan


Subevent: TypeAlias = Literal[
    "client_connect", "server_connect", "handed_over", "client_disconnect", "server_disconnect"
]


class Reporter:
    """Remembers what the later events of a connection repeat of the earlier ones.

    `accepted` is by CLOCK_MONOTONIC.
    """

    __slots__ = (
        "_client_ended",
        "_client_ip",
        "_client_port",
        "_listen_ip",
        "_listen_port",
        "_log",
        "_server_ended",
        "_server_ip",
        "_server_port",
        "accepted",
    )

    def __init__(self, log: Log, listener: ListenerPlan, handover: Handover) -> None:
        peer = handover.session.peer
        self.accepted = handover.accepted
        self._client_ip = peer.address
        self._client_port = peer.port or None
        self._listen_ip = listener.listen_ip
        self._listen_port = listener.listen_port or None
        self._log = log
        self._server_ip = ""
        self._server_port: int | None = None
        self._client_ended = False
        # There is no end of what never was.
        self._server_ended = True

    def client_connect(self, session: Session | Passthrough, transport: Transport | None) -> None:
        """Tell that a session, or a connection to be passed through, has arrived."""
        peer = session.peer
        self._emit(
            "client_connect",
            sni=peer.sni,
            alpn=peer.alpn,
            tls_version=VERSION_NAMES[session.version] if isinstance(session, Session) else "",
            group=peer.group,
            transport=transport.value if transport else "",
        )

    def peer(self, certificates: tuple[bytes, ...]) -> Peer:
        """Give what is known of the client; `certificates` are its own."""
        return Peer(self._client_ip, self._client_port or 0, certificates=certificates)

    @property
    def server(self) -> tuple[str, int]:
        """The target's address as the log has it."""
        return self._server_ip, self._server_port or 0

    @property
    def logged(self) -> tuple[bool, bool]:
        """Whether the end of the target and that of the client have been told."""
        return self._server_ended, self._client_ended

    def go_on(self, server: tuple[str, int], logged: tuple[bool, bool]) -> None:
        """Go on where another relay was, by its `server` and `logged`."""
        self._server_ip, self._server_port = server[0], server[1] or None
        self._server_ended, self._client_ended = logged

    def kernel_refused(self, direction: Literal["tx", "rx"], description: str) -> None:
        """Tell that the kernel did not take a direction of the client's session."""
        self._log.emit(
            KernelRefused(
                direction=direction,
                client_ip=self._client_ip,
                client_port=self._client_port,
                error_desc=description,
            )
        )

    def server_connect(self, address: Any, started: float) -> None:
        """Tell that the target answered; `started` is when dialling began, by CLOCK_MONOTONIC.

        `address` begins with IP address and port, or with a Unix socket and 0.
        """
        self._server_ip = address[0]
        self._server_port = address[1] or None
        self._server_ended = False
        self._emit("server_connect", duration_ms=_since(started))

    def handed_over(self, address: Any, started: float, transport: Transport | None) -> None:
        """Tell that an application has the session; nothing is known of it from then on."""
        self._server_ip = address[0]
        where = transport.value if transport else ""
        self._emit("handed_over", duration_ms=_since(started), transport=where)

    def not_connected(self, started: float, error: BackendError) -> None:
        """Tell that no target could be reached."""
        self._emit(
            "server_connect",
            duration_ms=_since(started),
            error_msg=error.reason,
            error_desc=error.description,
        )

    def server_disconnect(self, reason: str = "", description: str = "") -> None:
        """Tell that the target's connection ended, in order when there is no reason."""
        if not self._server_ended:
            self._server_ended = True
            self._emit(
                "server_disconnect",
                duration_ms=_since(self.accepted),
                error_msg=reason,
                error_desc=description,
            )

    def client_disconnect(
        self, connection: Connection, reason: str = "", description: str = ""
    ) -> None:
        """Tell that the client's connection ended, in order when there is no reason."""
        if not self._client_ended:
            self._client_ended = True
            bytes_in, bytes_out = connection.counts()
            transport = connection.transport
            self._emit(
                "client_disconnect",
                transport=transport.value if transport else "",
                bytes_in=bytes_in,
                bytes_out=bytes_out,
                duration_ms=_since(self.accepted),
                error_msg=reason,
                error_desc=description,
            )

    def denied(self, certificates: tuple[bytes, ...], decision: Decision) -> None:
        """Tell that a client that had been let in is now refused, for its certificate."""
        self._log.emit(
            Auth(
                subevent="mtls",
                outcome="denied",
                client_ip=self._client_ip,
                client_port=self._client_port,
                listen_ip=self._listen_ip,
                listen_port=self._listen_port,
                reason=decision.reason,
                alert=f"{alert_name(decision.alert)} sent" if decision.alert is not None else "",
                error_msg=decision.text,
                duration_ms=_since(self.accepted),
                **certificate_fields(certificates),
            )
        )

    def _emit(self, subevent: Subevent, **fields: Any) -> None:
        self._log.emit(
            Proxy(
                subevent=subevent,
                client_ip=self._client_ip,
                client_port=self._client_port,
                listen_ip=self._listen_ip,
                listen_port=self._listen_port,
                server_ip=self._server_ip,
                server_port=self._server_port,
                **fields,
            )
        )


def _since(start: float) -> float:
    """Give the milliseconds since `start`, to the microsecond."""
    return round((time.monotonic() - start) * 1000, 3)
