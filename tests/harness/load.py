"""Load that notices: streams that check every byte, and clients that come and go.

A stream keeps 64 KB under way in both directions through an echoing target, so whatever happens to
handfast happens in the middle of records. Each runs on a thread of its own, and remembers how it
ended.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Self

from harness.clients import connect, receive
from harness.homes import TIMEOUT
from harness.instance import wait_for

PIECE: Final = 16 << 10
AHEAD: Final = 4
PAUSE: Final = 0.005
"""Seconds between pieces: the load leaves a core to those who have to act under it."""
WARM_UP: Final = 24
"""Connections that `warm_up` makes."""
_WARM_STREAMS: Final = 4


class Stream(threading.Thread):
    """One long connection. `error` is why it broke, None while it has not."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(daemon=True)
        self._sock = connect(port, context)
        self._sock.settimeout(TIMEOUT)
        self.port = int(self._sock.getsockname()[1])
        self.pieces = 0
        self.error: Exception | None = None
        self._block = os.urandom(PIECE)
        self._sent, self._received = hashlib.sha256(), hashlib.sha256()
        self._under_way: deque[int] = deque()
        self._finish = threading.Event()
        self._crash = False

    def run(self) -> None:
        """Send and receive until told to finish, then end in order."""
        try:
            while not self._finish.wait(PAUSE):
                self._send()
                if len(self._under_way) == AHEAD:
                    self._receive()
            if self._crash:
                reset(self._sock)
                return
            while self._under_way:
                self._receive()
            assert self._sent.digest() == self._received.digest(), "bytes were changed"
            self._sock.unwrap()
        except (OSError, AssertionError) as error:
            self.error = error
        finally:
            self._sock.close()

    def _send(self) -> None:
        turn = (self.pieces * 31) % PIECE
        piece = self._block[turn:] + self._block[:turn]
        self._sent.update(piece)
        self._under_way.append(len(piece))
        self._sock.sendall(piece)

    def _receive(self) -> None:
        count = self._under_way.popleft()
        piece = receive(self._sock, count)
        if len(piece) < count:
            raise ConnectionError("the stream ended early")
        self._received.update(piece)
        self.pieces += 1

    def finish(self) -> None:
        """Say that it is to end; `join` waits for it."""
        self._finish.set()

    def crash(self) -> None:
        """Say that it is to break the connection with RST, in the middle of what is under way."""
        self._crash = True
        self._finish.set()


class Streams:
    """Several streams at once."""

    def __init__(self, port: int, context: ssl.SSLContext, count: int) -> None:
        self.each = [Stream(port, context) for _ in range(count)]

    def __enter__(self) -> Self:
        for stream in self.each:
            stream.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    @property
    def ports(self) -> dict[int, Stream]:
        """The streams by the client's port, as the log tells of them."""
        return {each.port: each for each in self.each}

    @property
    def broken(self) -> dict[int, Exception]:
        """Why streams broke, by the client's port."""
        return {each.port: each.error for each in self.each if each.error is not None}

    def go_on(self, count: int = 2 * AHEAD, but: tuple[Stream, ...] = ()) -> None:
        """Wait until every stream has gone on by so many pieces from now: none stands still."""
        goal = {each: each.pieces + count for each in self.each if each not in but}

        def all_there() -> bool:
            assert not any(each.error for each in goal), self.broken
            return all(each.pieces >= most for each, most in goal.items())

        wait_for(all_there, "every stream goes on", TIMEOUT)

    def finish(self) -> None:
        """End all in order."""
        for stream in self.each:
            stream.finish()
        for stream in self.each:
            stream.join(TIMEOUT)
            assert not stream.is_alive(), "a stream does not end"


class Churn:
    """Clients that come, have a few bytes echoed and go, on some threads, without a pause.

    `good` and `failures` are what became of them.
    """

    def __init__(self, port: int, context: ssl.SSLContext, threads: int = 2) -> None:
        self._port = port
        self._context = context
        self.good = 0
        self.failures: list[Exception] = []
        self._lock = threading.Lock()
        self._finish = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Have no more clients come, and wait for the last."""
        self._finish.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a client does not end"

    def _run(self) -> None:
        while not self._finish.wait(PAUSE):
            try:
                visit(self._port, self._context)
            except OSError as error:
                with self._lock:
                    self.failures.append(error)
            else:
                with self._lock:
                    self.good += 1

    def go_on(self, count: int = 20) -> None:
        """Wait until so many more clients have been served."""
        goal = self.good + count
        wait_for(lambda: self.good >= goal, f"{count} clients are served", TIMEOUT)


def visit(port: int, context: ssl.SSLContext) -> None:
    """Be a client: connect, have some bytes echoed, and leave in order. Raises OSError."""
    data = os.urandom(64)
    with connect(port, context) as client:
        client.sendall(data)
        if receive(client, len(data)) != data:
            raise ConnectionError("the echo is not what was sent")
        client.unwrap().close()


def warm_up(port: int, context: ssl.SSLContext) -> None:
    """Have every process do its work some times, so that it holds what it keeps for ever."""
    for _ in range(WARM_UP - _WARM_STREAMS):
        visit(port, context)
    with Streams(port, context, _WARM_STREAMS):
        pass


def reset(sock: socket.socket) -> None:
    """Close a socket with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


@contextmanager
def crowd(
    port: int, count: int, behave: Callable[[socket.socket], object] = lambda sock: None
) -> Iterator[list[socket.socket]]:
    """Connect so many clients that do one thing at most, and stay."""
    found: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), TIMEOUT)
            found.append(sock)
            behave(sock)
        yield found
    finally:
        for sock in found:
            sock.close()
