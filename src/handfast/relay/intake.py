"""Where sessions come in: taken from the channel while there are descriptors for them.

A session whose socket finds no free descriptor is lost: the kernel has taken it from the channel by
the time that it says so. So a relay stops short of its limit. The kernel gives the lowest number
that is free, so a high one says that few are left, and nothing has to be counted. What lies above
is for the targets' sockets. Sessions wait in the channel meanwhile; when that is full the acceptors
accept no more, and clients wait in the kernel's queue.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from handfast.errors import HandfastError
from handfast.handover import channel
from handfast.handover.message import Handover
from handfast.observe.events import Accepting, SystemFault
from handfast.observe.log import Log
from handfast.transport.alarm import Alarm
from handfast.transport.loop import Loop

PAUSE_SECONDS: Final = 0.1
CALM_SECONDS: Final = 1.0
"""How long it has to go well again until the log says so; else it would say so all the time."""
_MOST_SPARE: Final = 1024
_MOVED_AT_ONCE: Final = 16
_LAST: Final = 8


class Intake:
    """Takes sessions from `receivers` and gives them to `adopt`, with their descriptors.

    It begins with `start`. After `drain`, when the channels are empty, or after `stop`, `drained`
    is true; `rested` is called then.
    """

    def __init__(
        self,
        loop: Loop,
        receivers: Sequence[socket.socket],
        adopt: Callable[[Handover, list[int]], None],
        rested: Callable[[], None],
        log: Log,
    ) -> None:
        self._loop = loop
        self._receivers = receivers
        self._adopt = adopt
        self._rested = rested
        self.drained = False
        self._log = log
        self._ceiling: Final = ceiling()
        self._brim: Final = brim()
        self._paused = False
        self._started = False
        self._draining = False
        self._was_moved = False
        self._calm = Alarm(loop)
        self._told = False

    def start(self) -> None:
        """Take sessions from now on."""
        if not self._started:
            self._started = True
            self._listen()

    def _listen(self) -> None:
        for each in self._receivers:
            self._loop.add_reader(each.fileno(), partial(self._readable, each))

    def _ignore(self) -> None:
        for each in self._receivers:
            self._loop.remove_reader(each.fileno())

    def _readable(self, receiver: socket.socket) -> None:
        """Take one session, or some of those that come from another relay: they stand still."""
        for _ in range(_MOVED_AT_ONCE):
            if not self._take(receiver) or not self._was_moved or self._paused:
                return

    def _take(self, receiver: socket.socket) -> bool:
        """Take one session; False when there was none, or there was no room for it."""
        try:
            taken = channel.receive(receiver)
        except OSError as error:  # no descriptor was free after all
            self.refuse(error.strerror or str(error))
            self.pause()
            return False
        except HandfastError as error:
            self.refuse(str(error))
            return True
        if taken is None:
            return False
        self._was_moved = len(taken[1]) > 1
        # What comes from another relay has both of its sockets, and needs no room for more.
        if max(taken[1]) >= (self._brim if self._was_moved else self._ceiling):
            self.pause()
        self._adopt(*taken)
        return True

    def refuse(self, reason: str) -> None:
        """Tell of a session that was not taken."""
        self._log.emit(SystemFault(error_msg="a hand-over was refused", error_desc=reason))

    def drain(self) -> None:
        """Take what is in the channel and no more."""
        self._draining = True
        for each in self._receivers:
            while not self._paused and self._take(each):
                pass
        if not self._paused:
            self.stop()
            self._rested()

    def stop(self) -> None:
        """Take no more, whatever is in the channels: it is another relay's."""
        self._draining = self.drained = True
        self._ignore()

    def pause(self) -> None:
        """Take nothing for a while: a descriptor was wanted, and none was free, or few are left."""
        if self._paused or self.drained:
            return
        self._paused = True
        self._ignore()
        self._loop.call_later(PAUSE_SECONDS, self._look_again)
        self._calm.stop()
        if not self._told:
            self._told = True
            self._log.emit(Accepting("paused", "few descriptors are left; raise LimitNOFILE"))

    def _look_again(self) -> None:
        if self.drained:
            return
        if _lowest_free(self._receivers[0].fileno()) >= self._ceiling:
            self._loop.call_later(PAUSE_SECONDS, self._look_again)
            return
        self._paused = False
        self._calm.set(CALM_SECONDS, self._recovered)
        self._listen()
        if self._draining:
            self.drain()

    def _recovered(self) -> None:
        self._told = False
        self._log.emit(Accepting("resumed"))


def ceiling() -> int:
    """Give the number of a descriptor at which few are left: a quarter of them, at most 1024."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return int(limit - min(limit // 4, _MOST_SPARE))


def brim() -> int:
    """Give the number of a descriptor at which hardly any is left."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else int(limit - _LAST)


def _lowest_free(descriptor: int) -> int:
    try:
        found = os.dup(descriptor)
    except OSError:
        return sys.maxsize
    os.close(found)
    return found
