"""The removal of connections to other relays, while traffic goes on.

It is done in slices, with a turn of the event loop between two of them. A connection stands still
from when it is taken out until the other relay looks at it, so none is taken out before there is
room for it in a channel: at most one waits here, and those in the channels' queues.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from handfast.handover import channel
from handfast.handover.message import Handover
from handfast.observe.events import SystemFault
from handfast.relay.transfer import can_go, give

if TYPE_CHECKING:
    from handfast.relay.connection import Connection
    from handfast.relay.relay import Relay

SLICE_SECONDS: Final = 0.005
"""What a slice takes at most, but for its last connection."""
PAUSE: Final = 0.001
"""Seconds between two slices: the resolution of the loop's timers, so that it is another turn."""
LEAVE_SECONDS: Final = 0.05
COUNT_SECONDS: Final = 0.2
"""How long one that has left counts here: until the other relay counts it, there would be a gap."""
WAIT_SECONDS: Final = 0.02
"""How often those are looked at that could not go yet, and those that have come meanwhile."""


Parcel: TypeAlias = tuple[Handover, tuple[socket.socket, socket.socket]]


class Removal:
    """Gives connections to the relays behind `channels`, which it owns, in turn.

    `most` of them, or with None all that there are and that come; `removed` is called once, with
    how many went: for all, when the relay has none left and takes no more in. What waits for room
    in the one `before`, which ends with that, goes first.
    """

    def __init__(
        self,
        relay: Relay,
        channels: list[socket.socket],
        most: int | None,
        removed: Callable[[int], None],
        before: Removal | None = None,
    ) -> None:
        self.count = 0
        self._relay = relay
        self._channels = deque(channels)
        self._most = most
        self._removed = removed
        self._left: list[Connection] = list(relay.connections)
        self._waiting = before.cancel() if before is not None else None
        # The others that are leaving read from the same channels until they have heard of it too,
        # and what goes to one of those has a longer way.
        pause = LEAVE_SECONDS if most is None else 0
        self._timer = relay.loop.call_later(pause, self._slice)
        self._counted: deque[tuple[float, int]] = deque()  # since when, and where in the census

    def _slice(self) -> None:
        if not self._send_waiting():
            return
        end = time.monotonic() + SLICE_SECONDS
        self._uncount(self._relay.loop.time() - COUNT_SECONDS)
        while self._left and not self._is_enough():
            connection = self._left.pop()
            if connection not in self._relay.connections or not can_go(connection):
                continue
            self._waiting = give(connection)
            self._counted.append((self._relay.loop.time(), connection.place))
            if not self._send_waiting():
                return  # until a channel has room
            if time.monotonic() > end:
                break
        self._go_on()

    def _uncount(self, before: float) -> None:
        """Count those no more that had left by then: the others do."""
        while self._counted and self._counted[0][0] <= before:
            self._relay.column.leave(self._counted.popleft()[1])

    def _is_enough(self) -> bool:
        return self._most is not None and self.count >= self._most

    def _go_on(self) -> None:
        relay = self._relay
        if self._is_enough() or (not self._left and self._most is not None):
            self._end()
            return
        pause = PAUSE
        if not self._left:
            if relay.is_done() and not self._counted:
                self._end()
                return
            self._left = list(relay.connections)
            pause = WAIT_SECONDS
        self._timer = relay.loop.call_later(pause, self._slice)

    def _send_waiting(self) -> bool:
        """Send the connection that waits; False when every channel is full."""
        if self._waiting is None:
            return True
        handover, sockets = self._waiting
        descriptors = [each.fileno() for each in sockets]
        for _ in range(len(self._channels)):
            self._channels.rotate(-1)
            try:
                if not channel.send(self._channels[0], handover, *descriptors):
                    continue
            except OSError as error:  # it cannot be sent at all: its sockets are closed, it is lost
                reason = error.strerror or str(error)
                self._relay.log.emit(SystemFault("a connection cannot be handed over", reason))
            self._waiting = None
            self.count += 1
            handover.wipe()
            for sock in sockets:
                sock.close()
            return True
        for each in self._channels:
            self._relay.loop.add_writer(each.fileno(), self._room)
        return False

    def _room(self) -> None:
        for each in self._channels:
            self._relay.loop.remove_writer(each.fileno())
        if self._send_waiting():
            self._slice()

    def _end(self) -> None:
        self._uncount(self._relay.loop.time())
        for each in self._channels:
            each.close()
        self._removed(self.count)

    def cancel(self) -> Parcel | None:
        """Give no more away; what waits for room is the caller's."""
        self._timer.cancel()
        self._uncount(self._relay.loop.time())
        for each in self._channels:
            self._relay.loop.remove_writer(each.fileno())
            each.close()
        waiting, self._waiting = self._waiting, None
        return waiting
