"""Connect to a service: one target after another, each at most once, in one connect timeout.

Every target has its share of the time that is left: with three to try, the first has a third.
What fails after bytes have flowed is not tried again, for nobody knows what the target did.

The interface, for the connection that wants a target:

    failover = Failover(pool, resolver, deadlines, loop, timeout, connected, failed, eager=eager)
    failover.start()

Then comes `connected(sock, address)`, maybe before `start` returns, and the connection

- calls `failover.target.succeeded()` when the target is in order (at once, or after its TLS
  handshake), keeps `failover.target`, drops the failover, and calls `target.release()` at its end;
- or, when the target's TLS handshake fails or `failover.until` has passed before it is done, closes
  the socket and calls `failover.retry(error)`: another `connected` follows, or `failed`.

Or comes `failed(error)`: no target is left, and all were released. Nothing comes after `cancel`,
which releases, too: it is for a client that leaves before `succeeded`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from handfast.config import TcpAddress, UnixAddress
from handfast.errors import BackendError
from handfast.relay.dial import Dial
from handfast.relay.question import Opened
from handfast.relay.resolver import Endpoint, Resolver
from handfast.relay.targets import Pool, TargetState
from handfast.transport.deadlines import Deadlines
from handfast.transport.loop import Loop

Connected: TypeAlias = Callable[[socket.socket, Any], None]
Failed: TypeAlias = Callable[[BackendError], None]


class Failover:
    """One search for a target of `pool` that can be connected to, of at most `timeout` seconds.

    `connected` gets a non-blocking socket, which is then the callee's, and what the log calls the
    target: a tuple that begins with IP address and port, or with the path of a Unix socket and 0.
    That of an application goes on with what the resolver says of its socket (`question.Opened`).
    `until` is when the time of the target at hand is over, by the loop's clock. `eager` tells that
    there is something to send at once; with TLS there always is.
    """

    __slots__ = (
        "_began",
        "_connected",
        "_deadlines",
        "_dial",
        "_eager",
        "_end",
        "_error",
        "_failed",
        "_holds",
        "_loop",
        "_over",
        "_pool",
        "_resolver",
        "_tried",
        "_waiting",
        "bucket",
        "target",
        "until",
    )

    target: TargetState

    def __init__(
        self,
        pool: Pool,
        resolver: Resolver,
        deadlines: Deadlines,
        loop: Loop,
        timeout: float,
        connected: Connected,
        failed: Failed,
        *,
        eager: bool = False,
    ) -> None:
        self._eager = eager
        self.bucket = 0
        self.until = 0.0
        self._pool = pool
        self._resolver = resolver
        self._deadlines = deadlines
        self._loop = loop
        self._began = loop.time()
        self._end = self._began + timeout
        self._connected = connected
        self._failed = failed
        self._tried: list[TargetState] = []
        self._dial: Dial | None = None
        self._over = False
        self._error: BackendError | None = None
        self._holds = False
        self._waiting = False

    def start(self) -> None:
        """Make for the first target."""
        self._next()

    def retry(self, error: BackendError) -> None:
        """Give the target at hand up, because of this, and make for another."""
        self._stop_waiting()
        self._dial = None
        if not error.ours:
            self.target.failed(error)
        self._release()
        self._error = error
        # Not at once: a hundred targets that refuse would be a hundred calls deep.
        self._loop.call_soon(self._next)

    def cancel(self) -> None:
        """Give everything up."""
        self._over = True
        self._stop_waiting()
        if self._dial is not None:
            self._dial.cancel()
        if self._holds:
            self._release()

    def expired(self, now: float) -> None:  # noqa: ARG002  Deadlines gives the time
        """Give the target at hand up, because its time is over."""
        if self._dial is not None:
            self._dial.cancel()
        self.retry(BackendError(f"no connection after {self.until - self._began:.3g} s"))

    def _next(self) -> None:
        if self._over:
            return
        now = self._began = self._loop.time()
        target = self._pool.pick(self._tried) if now < self._end else None
        if target is None:
            self._over = True
            full = "every target is at its limit of connections"
            self._failed(self._error or BackendError(full))
            return
        self.target = target
        self._holds = True
        left = len(self._pool) - len(self._tried)
        self._tried.append(target)
        self.until = now + (self._end - now) / left
        self._waiting = True
        if isinstance(target.address, TcpAddress):
            self._resolver.resolve(target.address, partial(self._resolved, target))
        elif isinstance(target.address, UnixAddress):
            self._resolver.connect(target.address, partial(self._connected_to, target))
        else:
            self._resolver.open(target.address, partial(self._opened, target))
        if self._waiting:  # else it was quick, as it mostly is on the same machine
            self._deadlines.set(self, self.until)

    def _stop_waiting(self) -> None:
        self._waiting = False
        if self.bucket:
            self._deadlines.drop(self)

    def _release(self) -> None:
        self._holds = False
        self.target.release()

    def _waits_for(self, target: TargetState) -> bool:
        return self._holds and self.target is target

    def _resolved(self, target: TargetState, answer: list[Endpoint] | BackendError) -> None:
        if not self._waits_for(target):
            return
        if isinstance(answer, BackendError):
            self.retry(answer)
            return
        eager = self._eager or target.tls is not None
        self._dial = Dial(self._loop, answer, self._dialled, self.retry, eager=eager)
        self._dial.start()

    def _connected_to(self, target: TargetState, answer: socket.socket | BackendError) -> None:
        if isinstance(answer, BackendError):
            if self._waits_for(target):
                self.retry(answer)
        elif self._waits_for(target):
            self._dialled(answer, (str(target.address), 0))
        else:
            answer.close()

    def _opened(
        self, target: TargetState, answer: tuple[socket.socket, Opened] | BackendError
    ) -> None:
        if isinstance(answer, BackendError):
            self._connected_to(target, answer)
        elif self._waits_for(target):
            self._dialled(answer[0], (str(target.address), 0, answer[1]))
        else:
            answer[0].close()

    def _dialled(self, sock: socket.socket, address: Any) -> None:
        self._dial = None
        self._stop_waiting()
        self._connected(sock, address)
