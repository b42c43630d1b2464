"""How long a connection may go on: in all, and without anything happening."""

from __future__ import annotations

from typing import Final

from handfast.config import Timeouts
from handfast.relay.state import State

NEVER: Final = float("inf")


def deadline(timeouts: Timeouts, state: State, accepted: float, touched: float) -> float:
    """Give the time at which to look at a connection again, if nothing happens until then.

    All times are by one clock, in seconds. Once one side has ended, `half_closed` is the limit.
    """
    quiet = _quiet(timeouts, state)
    when = touched + quiet if quiet else NEVER
    return min(when, accepted + timeouts.lifetime) if timeouts.lifetime else when


def overdue(timeouts: Timeouts, state: State, accepted: float, touched: float, now: float) -> str:
    """Tell why a connection has to end now; empty when it may go on."""
    quiet = _quiet(timeouts, state)
    if timeouts.lifetime and now >= accepted + timeouts.lifetime:
        return f"open for {timeouts.lifetime:g} s, which is the limit"
    if quiet and now >= touched + quiet:
        return f"idle for {quiet:g} s" if state is State.READY else "half-closed too long"
    return ""


def _quiet(timeouts: Timeouts, state: State) -> float:
    return timeouts.idle if state is State.READY else timeouts.half_closed
