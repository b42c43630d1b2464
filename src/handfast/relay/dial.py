"""Connect to a target, racing its addresses (RFC 8305, Happy Eyeballs).

The addresses are tried in the order given. The next one starts
when the one before has failed, or after 250 ms without an answer; the first that connects wins.
How long it may take in all is the caller's business, who cancels it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from handfast.errors import BackendError
from handfast.relay.resolver import Endpoint
from handfast.transport.loop import Loop, Timer

ATTEMPT_DELAY: Final = 0.25
_UNDER_WAY: Final = {0, errno.EINPROGRESS}
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


class Dial:
    """One attempt to connect to any of the endpoints.

    Ends with exactly one call, of `connected` with a non-blocking socket that the callee owns and
    the endpoint's address, or of `failed`; with none after `cancel`.

    When it is `eager`, the caller has something to send at once, and the target learns of the
    connection with that: our acknowledgement of its own waits for company (tcp(7), TCP_QUICKACK).
    That is one segment less, 5 us of the kernel's time; should nothing be sent after all, it waits
    0.2 s.
    """

    __slots__ = (
        "_attempts",
        "_connected",
        "_eager",
        "_endpoints",
        "_error",
        "_failed",
        "_loop",
        "_timer",
    )

    def __init__(
        self,
        loop: Loop,
        endpoints: list[Endpoint],
        connected: Callable[[socket.socket, Any], None],
        failed: Callable[[BackendError], None],
        *,
        eager: bool = False,
    ) -> None:
        self._eager = eager
        self._loop = loop
        self._endpoints = endpoints[::-1]
        self._connected = connected
        self._failed = failed
        self._attempts: dict[int, tuple[socket.socket, Any]] = {}
        self._timer: Timer | None = None
        self._error: BackendError | None = None

    def start(self) -> None:
        """Start the next attempt, and the clock for the one behind it."""
        self._stop_timer()
        while self._endpoints:
            family, address = self._endpoints.pop()
            try:
                self._attempt(family, address)
            except OSError as error:
                self._note(address, error)
                continue
            if self._endpoints and self._attempts:
                self._timer = self._loop.call_later(ATTEMPT_DELAY, self.start)
            return
        if not self._attempts:
            self._failed(self._error or BackendError("the target has no address"))

    def _attempt(self, family: int, address: Any) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._eager:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            code = sock.connect_ex(address)  # nearly always EINPROGRESS: no exception for that
            if code not in _UNDER_WAY:
                raise OSError(code, os.strerror(code))
        except OSError:
            sock.close()
            raise
        if code and not _is_connected(sock):
            descriptor = sock.fileno()
            self._attempts[descriptor] = (sock, address)
            self._loop.add_writer(descriptor, partial(self._writable, descriptor))
        else:
            self._win(sock, address)

    def _writable(self, descriptor: int) -> None:
        sock, address = self._attempts.pop(descriptor)
        self._loop.remove_writer(descriptor)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            sock.close()
            self._note(address, OSError(code, os.strerror(code)))
            self.start()
        else:
            self._win(sock, address)

    def _win(self, sock: socket.socket, address: Any) -> None:
        self.cancel()
        self._connected(sock, address)

    def _note(self, address: Any, error: OSError) -> None:
        self._error = BackendError(
            f"cannot connect to {address[0]} port {address[1]}",
            description=error.strerror or str(error),
            ours=error.errno in _EXHAUSTED,
        )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def cancel(self) -> None:
        """Drop every attempt."""
        self._stop_timer()
        self._endpoints = []
        for descriptor, (sock, _) in self._attempts.items():
            self._loop.remove_writer(descriptor)
            sock.close()
        self._attempts.clear()


def _is_connected(sock: socket.socket) -> bool:
    """Tell whether a connect that went to the background is done already.

    On the loopback interface it nearly always is, and asking costs one call instead of a turn of
    the event loop with eight.
    """
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
