"""What a relayed connection tells the log: the four subevents of `proxy`, each at most once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from handfast.observe.events import Proxy
from handfast.tls.keys import VERSION_NAMES

if TYPE_CHECKING:
    from handfast.observe.log import Log
    from handfast.relay.connection import Connection
    from handfast.relay.relay import Service
    from handfast.tls.session import Session


Subevent: TypeAlias = Literal[
    "client_connect", "server_connect", "client_disconnect", "server_disconnect"
]


class Reporter:
    """Remembers what the later events of a connection repeat of the earlier ones."""

    __slots__ = (
        "_accepted",
        "_client_ended",
        "_client_ip",
        "_client_port",
        "_log",
        "_server_ended",
        "_server_ip",
        "_server_port",
        "_service",
    )

    def __init__(self, log: Log, service: Service, session: Session, accepted: float) -> None:
        self._log = log
        self._service = service
        self._client_ip = session.peer.address
        self._client_port = session.peer.port or None
        self._server_ip = ""
        self._server_port: int | None = None
        self._accepted = accepted
        self._client_ended = False
        # There is no end of what never was.
        self._server_ended = True

    def client_connect(self, session: Session) -> None:
        """Tell that a session has arrived."""
        peer = session.peer
        self._emit(
            "client_connect",
            sni=peer.sni,
            alpn=peer.alpn,
            tls_version=VERSION_NAMES[session.version],
            group=peer.group,
        )

    def server_connect(self, ip: str, port: int, started: float) -> None:
        """Tell that the target answered; `started` is when dialling began, by CLOCK_MONOTONIC."""
        self._server_ip = ip
        self._server_port = port or None
        self._server_ended = False
        self._emit("server_connect", duration_ms=_since(started))

    def not_connected(self, started: float, reason: str, description: str) -> None:
        """Tell that no target could be reached."""
        self._emit(
            "server_connect",
            duration_ms=_since(started),
            error_msg=reason,
            error_desc=description,
        )

    def server_disconnect(self, reason: str = "", description: str = "") -> None:
        """Tell that the target's connection ended, in order when there is no reason."""
        if not self._server_ended:
            self._server_ended = True
            self._emit(
                "server_disconnect",
                duration_ms=_since(self._accepted),
                error_msg=reason,
                error_desc=description,
            )

    def client_disconnect(
        self, connection: Connection, reason: str = "", description: str = ""
    ) -> None:
        """Tell that the client's connection ended, in order when there is no reason."""
        if not self._client_ended:
            self._client_ended = True
            self._emit(
                "client_disconnect",
                bytes_in=connection.reader.bytes,
                bytes_out=connection.writer.bytes,
                duration_ms=_since(self._accepted),
                error_msg=reason,
                error_desc=description,
            )

    def _emit(self, subevent: Subevent, **fields: Any) -> None:
        service = self._service
        self._log.emit(
            Proxy(
                subevent=subevent,
                client_ip=self._client_ip,
                client_port=self._client_port,
                listen_ip=service.listen_ip,
                listen_port=service.listen_port or None,
                server_ip=self._server_ip,
                server_port=self._server_port,
                **fields,
            )
        )


def _since(start: float) -> float:
    """Give the milliseconds since `start`, to the microsecond."""
    return round((time.monotonic() - start) * 1000, 3)
