"""Who is let in: the limits, before anything is spent on a handshake.

An admitted connection is counted in the acceptor's column of the census until it ends or is
handed over. A refused one costs the acceptor a look at the census, and the log at most one line
per second for each listener and reason.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from handfast.config import Limits
from handfast.observe.events import Refused
from handfast.transport.census import Column


class Refusal(Enum):
    """Which limit a connection would have gone over; the values are for the log."""

    CONNECTIONS = "connections"
    LISTENER = "listener_connections"
    HANDSHAKES = "handshakes"
    SOURCE = "source_connections"
    RATE = "source_rate"


class Admission:
    """The limits as one acceptor keeps them. `limits` may be replaced at any time."""

    def __init__(self, column: Column, limits: Limits) -> None:
        self.limits = limits
        self._column: Final = column

    def admit(self, listener: int, max_connections: int, address: str, now: float) -> int | Refusal:
        """Let a new connection in and give its place, for `release`; or tell why not.

        `max_connections` is the listener's, 0 for no limit; `now` is of CLOCK_MONOTONIC, in
        seconds. A client without an address, of a Unix socket, is of no source, and the limits of
        sources do not apply to it.
        """
        census, limits = self._column.census, self.limits
        if limits.connections and census.connections() >= limits.connections:
            return Refusal.CONNECTIONS
        if limits.handshakes and census.handshakes() >= limits.handshakes:
            return Refusal.HANDSHAKES
        place = census.place(listener, address)
        if max_connections and census.of_listener(place) >= max_connections:
            return Refusal.LISTENER
        refusal = self._refuse_source(place, now)
        if refusal is not None:
            return refusal
        if limits.handshake_rate_per_source:
            self._column.started(place, now)
        self._column.hold(place)
        self._column.begin_handshake()
        return place

    def release(self, place: int) -> None:
        """Forget an admitted connection: its handshake failed, or a relay has it now."""
        self._column.leave(place)
        self._column.end_handshake()

    def _refuse_source(self, place: int, now: float) -> Refusal | None:
        census, limits = self._column.census, self.limits
        most, rate = limits.connections_per_source, limits.handshake_rate_per_source
        if most and census.of_source(place) >= most:
            return Refusal.SOURCE
        # The one that asks counts itself.
        if rate and census.rate(place, now) + 1 > rate:
            return Refusal.RATE
        return None


class Refusals:
    """The refused connections that the log does not know of yet."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Refusal, str, int], tuple[int, str]] = {}

    def add(self, refusal: Refusal, listen_ip: str, listen_port: int, client_ip: str) -> None:
        """Take note of one; of several, the first one's address is told."""
        key = refusal, listen_ip, listen_port
        count, example = self._waiting.get(key, (0, client_ip))
        self._waiting[key] = count + 1, example

    def take(self) -> list[Refused]:
        """Give an event for each listener and reason, and begin anew. Call it once a second."""
        waiting, self._waiting = self._waiting, {}
        return [
            Refused(
                reason=refusal.value,
                listen_ip=listen_ip,
                listen_port=listen_port or None,
                client_ip=client_ip,
                count=count,
            )
            for (refusal, listen_ip, listen_port), (count, client_ip) in waiting.items()
        ]
