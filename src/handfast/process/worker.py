"""What acceptors and relays have in common: an event loop, a log, and the supervisor's orders."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import uvloop

from handfast.observe.counters import Counters
from handfast.observe.events import SystemFault
from handfast.observe.log import Log
from handfast.process.messages import Drain, End, Query, Ready, Report, receive_in_child, send


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
    start: Callable[[asyncio.AbstractEventLoop, Callable[[], None]], Work],
) -> int:
    """Run one worker until it has drained or the supervisor is gone; give its exit status.

    `start` gets the event loop and what to call at the end of the work.
    """
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)

    def flush_soon() -> None:
        loop.call_soon(log.flush)

    log.on_pending = flush_soon
    loop.set_exception_handler(lambda _, context: log.emit(_bug(context)))
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
    loop.run_forever()
    log.flush()
    return 0


def _bug(context: dict[str, Any]) -> SystemFault:
    """Describe an exception that a callback let through, by type and place.

    It is a bug of ours. It costs the connection at hand, which its deadline will end, and no other.
    """
    error = context.get("exception")
    if error is None:
        return SystemFault(error_msg="bug in handfast", error_desc=str(context.get("message")))
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return SystemFault(
        error_msg="bug in handfast; please report it",
        error_desc=f"{type(error).__name__}{place}: {error}",
    )
