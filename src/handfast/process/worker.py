"""What acceptors and relays have in common: an event loop, a log, and the supervisor's orders."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

from handfast.observe.counters import Counters
from handfast.observe.events import SystemFault
from handfast.observe.log import Log
from handfast.process.messages import (
    Drain,
    End,
    Query,
    Ready,
    Reopen,
    Report,
    ToChild,
    receive_in_child,
    send,
)
from handfast.transport.alarm import Alarm
from handfast.transport.loop import Loop

LOG_SECONDS: Final = 0.02
"""How long a line may wait for others: a connection has five, and a write costs as much as one."""


LOST_SECONDS: Final = 1.0


class Work(Protocol):
    """What a worker does."""

    counters: Counters

    def drain(self) -> None:
        """Take no new work; call `ended` when the work in progress has ended."""

    def end_all(self, reason: str) -> None:
        """End the work in progress."""


W = TypeVar("W", bound=Work)


def run(
    control: socket.socket,
    log: Log,
    start: Callable[[Loop, Callable[[], None]], W],
    order: Callable[[W, ToChild, list[int]], None] | None = None,
) -> int:
    """Run one worker until it has drained or the supervisor is gone; give its exit status.

    `start` gets the event loop and what to call at the end of the work. `order` takes the orders
    that are for this kind of work alone, with their descriptors, which are closed afterwards.
    """
    loop = Loop(on_error=lambda error: log.emit(bug(error)))

    def flush_soon() -> None:
        loop.call_later(LOG_SECONDS, log.flush)

    log.on_pending = flush_soon
    tell_losses(log, loop)
    work = start(loop, loop.stop)

    def report(query: int) -> None:
        work.counters.log_dropped = log.dropped
        send(control, Report(query, work.counters.counts()))

    def obey() -> None:
        try:
            message, descriptors = receive_in_child(control)
        except EOFError:
            loop.stop()
            return
        try:
            if isinstance(message, Query):
                report(message.query)
            elif isinstance(message, Drain):
                work.drain()
            elif isinstance(message, End):
                work.end_all(message.reason)
            elif isinstance(message, Reopen) and descriptors:
                log.replace(descriptors.pop())
            elif order is not None:
                order(work, message, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    loop.add_reader(control.fileno(), obey)
    send(control, Ready())
    loop.run()
    log.flush()
    report(0)
    return 0


def tell_losses(log: Log, loop: Loop) -> None:
    """Have a process that lost lines say how many, though it may have nothing else to say."""
    alarm = Alarm(loop)
    log.on_lost = lambda: alarm.set(LOST_SECONDS, log.flush)


def bug(error: Exception) -> SystemFault:
    """Describe an exception that a callback let through, by type and place.

    It is a bug of ours. It costs the connection at hand, which its deadline will end, and no other.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return SystemFault(
        error_msg="bug in handfast; please report it",
        error_desc=f"{type(error).__name__}{place}: {error}",
    )
