"""The life of a relayed connection, as a table.

    CLIENT_CONNECTED -> SERVER_CONNECTING -> READY -> one side closed -> CLOSED

A session that is handed over to an application leads from SERVER_CONNECTING to CLOSED.
FAILED leads to CLOSED from everywhere, from CLOSED too: there may still be bytes to write
then. A closed side means that its last byte was read; the connection is torn down when both have
closed and everything read has been written.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from handfast.errors import HandfastBug


class State(Enum):
    """Where a connection is."""

    # Each member is there once; Enum's own hash is a function of Python's.
    __hash__ = object.__hash__

    CLIENT_CONNECTED = "client_connected"
    SERVER_CONNECTING = "server_connecting"
    READY = "ready"
    SERVER_DISCONNECTED = "server_disconnected"
    CLIENT_DISCONNECTED = "client_disconnected"
    CLOSED = "closed"


class Event(Enum):
    """What can happen to it."""

    __hash__ = object.__hash__

    DIALLED = "dialled"
    CONNECTED = "connected"
    CLIENT_CLOSED = "client closed"
    SERVER_CLOSED = "server closed"
    HANDED_OVER = "handed over"
    FAILED = "failed"


NEXT: Final = {
    (State.CLIENT_CONNECTED, Event.DIALLED): State.SERVER_CONNECTING,
    (State.SERVER_CONNECTING, Event.CONNECTED): State.READY,
    (State.SERVER_CONNECTING, Event.HANDED_OVER): State.CLOSED,
    (State.READY, Event.CLIENT_CLOSED): State.CLIENT_DISCONNECTED,
    (State.READY, Event.SERVER_CLOSED): State.SERVER_DISCONNECTED,
    (State.CLIENT_DISCONNECTED, Event.SERVER_CLOSED): State.CLOSED,
    (State.SERVER_DISCONNECTED, Event.CLIENT_CLOSED): State.CLOSED,
} | {(state, Event.FAILED): State.CLOSED for state in State}


def after(state: State, event: Event) -> State:
    """Give the state that follows; HandfastBug when the table has no such move."""
    try:
        return NEXT[state, event]
    except KeyError:
        raise HandfastBug(f"{event.value} in state {state.value}") from None
