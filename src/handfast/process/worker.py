"""What acceptors and relays have in common: an event loop, a log, and the supervisor's orders."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from handfast.observe.counters import Counters
from handfast.observe.events import SystemFault
from handfast.observe.log import Log
from handfast.process.messages import Drain, End, Query, Ready, Report, receive_in_child, send
from handfast.transport.loop import Loop

LOG_SECONDS: Final = 0.02
"""How long a line may wait for others: a connection has five, and a write costs as much as one."""


class Work(Protocol):
    """What a worker does."""

    counters: Counters

    def drain(self) -> None:
        """Take no new work; call `ended` when the work in progress has ended."""

    def end_all(self, reason: str) -> None:
        """End the work in progress."""


def run(
    control: socket.socket,
    log: Log,
    start: Callable[[Loop, Callable[[], None]], Work],
) -> int:
    """Run one worker until it has drained or the supervisor is gone; give its exit status.

    `start` gets the event loop and what to call at the end of the work.
    """
    loop = Loop(on_error=lambda error: log.emit(_bug(error)))

    def flush_soon() -> None:
        loop.call_later(LOG_SECONDS, log.flush)

    log.on_pending = flush_soon
    work = start(loop, loop.stop)

    def obey() -> None:
        try:
            message, _ = receive_in_child(control)
        except EOFError:
            loop.stop()
            return
        if isinstance(message, Query):
            counters = work.counters
            counters.log_dropped = log.dropped
            send(control, Report(message.query, counters.as_dict()))
        elif isinstance(message, Drain):
            work.drain()
        elif isinstance(message, End):
            work.end_all(message.reason)

    loop.add_reader(control.fileno(), obey)
    send(control, Ready())
    loop.run()
    log.flush()
    return 0


def _bug(error: Exception) -> SystemFault:
    """Describe an exception that a callback let through, by type and place.

    It is a bug of ours. It costs the connection at hand, which its deadline will end, and no other.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return SystemFault(
        error_msg="bug in handfast; please report it",
        error_desc=f"{type(error).__name__}{place}: {error}",
    )
