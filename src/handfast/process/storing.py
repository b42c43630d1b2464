"""Into the service manager's store: sockets as they are, packets into a memfd beside them.

A packet is taken from a channel as a relay wrote it, and nobody looks into it. Of what came along
the sockets go to the store, in bunches; the bulk is traffic, and goes into the memfd too.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from handfast.errors import HandfastError
from handfast.handover import channel
from handfast.handover.message import MAX_BULK
from handfast.process.stowage import Door, Manifest, Stowage, identify, is_bulk
from handfast.process.systemd import AT_ONCE, ServiceManager
from handfast.tls.keys import wipe

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from handfast.process.listeners import Listeners

STATE: Final = "state"
LISTENER: Final = "listener"
CONNECTION: Final = ""
"""The names in the store; there are thousands of the last, so that it is short."""

SOCKETS: Final = 2
"""Of a connection; it has one where it has no target yet."""


class Storing:
    """What is stored of one program. `room` is for so many descriptors more, `kept` and `lost` are
    connections, `count` is of all descriptors. `tell` is called with what goes wrong.

    Nothing more is stored after `deadline` (CLOCK_MONOTONIC): a manager may be as slow as it likes.
    """  # fmt: skip

    def __init__(self, manager: ServiceManager, tell: Callable[[str], None]) -> None:
        self.room = manager.capacity - 1  # for the memfd
        self.count = self.kept = self.lost = 0
        self.deadline = float("inf")
        self._manager = manager
        self._tell = tell
        self._stowage = Stowage()
        self._batch: list[int] = []
        self._batched = 0
        self._doors: tuple[Door, ...] = ()
        self._numbers = 0

    def store_doors(self, listeners: Listeners) -> None:
        """Store the listening sockets that the manager has not. Raises HandfastError."""
        bound, _, self._numbers = listeners.bequeath()
        self._doors = tuple(
            Door(each.name, each.address, each.place, each.number,
                 None if each.given else identify(each.descriptor))
            for each in bound
        )  # fmt: skip
        ours = [each.descriptor for each in bound if not each.given]
        self.room -= len(ours)
        for start in range(0, len(ours), AT_ONCE):
            self._store(LISTENER, ours[start : start + AT_ONCE])
        listeners.entrust()

    def _store(self, name: str, descriptors: list[int]) -> None:
        if time.monotonic() > self.deadline or not self._manager.store(name, descriptors):
            raise HandfastError("the service manager does not read what it is told")
        self.count += len(descriptors)

    def take(self, receiver: socket.socket) -> bool:
        """Take a packet, and store what it came with; False when there is none."""
        try:
            taken = channel.take(receiver)
        except (OSError, HandfastError):  # no descriptor was free
            self.lost += 1
            return True
        if taken is None:
            return False
        message, descriptors = taken
        try:
            self._stow(message, descriptors)
        except OSError as error:
            self.lost += 1
            self._tell(f"a connection cannot be stored: {error}")
        finally:
            message[:] = bytes(len(message))
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _stow(self, message: memoryview, descriptors: list[int]) -> None:
        """Put a connection into the store; what is taken out of `descriptors` is dealt with."""
        bulk = None
        if len(descriptors) > 1 and is_bulk(descriptors[-1]):
            bulk = descriptors.pop()
        try:
            if len(descriptors) > min(self.room, SOCKETS):
                self.lost += 1
                return
            self._add(message, bulk, descriptors)
        finally:
            if bulk is not None:
                os.close(bulk)
        self.room -= len(descriptors)
        self._batch += descriptors
        self._batched += 1
        descriptors.clear()
        if len(self._batch) > AT_ONCE - SOCKETS:
            self.flush()

    def _add(self, message: memoryview, bulk: int | None, sockets: list[int]) -> None:
        identities = [identify(each) for each in sockets]
        if bulk is None:
            self._stowage.add(message, None, identities)
            return
        data = bytearray(min(os.fstat(bulk).st_size, MAX_BULK))
        try:
            os.preadv(bulk, [data], 0)
            self._stowage.add(message, memoryview(data), identities)
        finally:
            wipe(data)

    def flush(self) -> None:
        """Store the sockets that wait for others; they are closed here."""
        (batch, self._batch), (count, self._batched) = (self._batch, []), (self._batched, 0)
        try:
            if batch:
                self._store(CONNECTION, batch)
            self.kept += count
        except HandfastError as error:
            self._tell(str(error))
            self.lost += count
            self.room = 0
        finally:
            for descriptor in batch:
                os.close(descriptor)

    def finish(self, manifest: Callable[[tuple[Door, ...], int, int], Manifest]) -> None:
        """Store the memfd behind all else. Raises OSError or HandfastError.

        `manifest` makes that of the doors, the next listener's number and the count of packets.
        """
        descriptor = self._stowage.seal(manifest(self._doors, self._numbers, self._stowage.count))
        try:
            self._store(STATE, [descriptor])
        finally:
            os.close(descriptor)
