"""The end of a supervisor: its doors are closed, what there is ends, and a deadline bounds it all.

Three steps, each beginning when the one before is done: acceptors finish their handshakes, relays
their connections (or give them to the store of the service manager, see `departure`), the rest is
told to end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from handfast.observe.events import Draining

if TYPE_CHECKING:
    from handfast.process.supervisor import Supervisor

_KILL_SECONDS: Final = 1.0
_REASON: Final = "handfast is stopping"


class Ending:
    """That of one supervisor."""

    def __init__(self, house: Supervisor) -> None:
        self._house = house

    def drain(self) -> None:
        """Let no more in, and finish what there is, as far as there is time."""
        self.until(time.monotonic() + self.close_doors())
        self.go_on()

    def close_doors(self, more: float = 0) -> float:
        """Let no more in; give the seconds to drain in. The end may take so many `more`."""
        house = self._house
        house.state = "draining"
        current = house.generations.current
        drain = (current.config if current else house.plan.config).timeouts.drain
        house.log.emit(Draining(drain))
        house.manager.stopping(drain + _KILL_SECONDS + more)
        house.watcher.close()
        self.leave_store()
        house.upgrades.refuse(_REASON)
        house.orders.refuse(_REASON)
        if house.upgrades.predecessors.serve:
            house.relays.drain()  # ours do not take anything yet
        house.upgrades.predecessors.drain()
        house.sidecars.end()
        house.generations.drain()
        return drain

    def leave_store(self) -> None:
        """Let go of what came back, so that the next start can have it from the manager again."""
        if self._house.arrival.busy:
            self._house.generations.listeners.entrust()
        self._house.arrival.close()

    def until(self, deadline: float) -> None:
        """End then, by CLOCK_MONOTONIC, what has not ended by itself."""
        self._house.loop.call_later(deadline - time.monotonic(), self._end)

    def go_on(self) -> None:
        """Take the next step when the one before is done."""
        house = self._house
        if any(each.template.pid for each in house.generations) or house.upgrades.predecessors:
            return
        if not house.departure.go_on() and not house.relays.drain():
            house.loop.stop()

    def _end(self) -> None:
        """End what has not ended in time."""
        house = self._house
        house.generations.kill()
        house.upgrades.predecessors.end(_REASON)
        house.relays.end(_REASON)
        house.loop.call_later(_KILL_SECONDS, house.loop.stop)
