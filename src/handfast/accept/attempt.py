"""One handshake in progress, next to its socket."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from msgspec.structs import replace

from handfast.accept.report import failed, granted
from handfast.handover.message import Handover
from handfast.tls.handshake import HandshakeError, Outcome
from handfast.transport.lingering import Lingering

if TYPE_CHECKING:
    from handfast.accept.acceptor import Acceptor, Door


class Attempt:
    """Drives an engine's handshake over a socket. It owns the socket until the hand-over.

    Each flight is one write. What the socket does not take of the last one travels with the
    session, as `unsent`; of an earlier one it is kept in `pending`, and nothing is read meanwhile.
    """

    __slots__ = (
        "_acceptor",
        "_fd",
        "_handshake",
        "_pending",
        "_sock",
        "_watched",
        "address",
        "bucket",
        "door",
        "port",
        "started",
        "touched",
    )

    def __init__(
        self, acceptor: Acceptor, door: Door, sock: socket.socket, address: str, port: int
    ) -> None:
        self.bucket = 0
        self.door = door
        self.address = address
        self.port = port
        self.started = acceptor.loop.time()
        self.touched = False
        self._acceptor = acceptor
        self._sock = sock
        self._fd = sock.fileno()
        self._handshake = door.engine.start(address, port)
        self._pending = b""
        self._watched = False

    def start(self) -> None:
        """Set the deadline, and read what has come with the connection."""
        acceptor = self._acceptor
        acceptor.deadlines.set(self, self.started + acceptor.handshake_timeout)
        self._readable()

    def _readable(self) -> None:
        acceptor = self._acceptor
        try:
            count = self._sock.recv_into(acceptor.buffer)
        except (BlockingIOError, InterruptedError):
            self._watch()
            return
        except OSError as error:
            self._break(error.strerror or str(error), "reset")
            return
        if not count:
            self._break(self._eof_reason(), "eof")
            return
        self.touched = True
        try:
            output = self._handshake.feed(bytes(acceptor.buffer[:count]))
        except HandshakeError as error:
            self._fail(error)
            return
        if output and not self._send(output):
            return
        if self._handshake.done:
            self._succeed()
        elif not self._pending:
            self._watch()

    def _eof_reason(self) -> str:
        return "closed during the handshake" if self.touched else "closed before the first byte"

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            self._acceptor.loop.add_reader(self._fd, self._readable)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._acceptor.loop.remove_reader(self._fd)

    def _send(self, output: bytes) -> bool:
        """Write one flight; False when the connection is at its end."""
        try:
            sent = self._sock.send(output)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._break(error.strerror or str(error), "reset")
            return False
        if sent < len(output):
            self._pending = output[sent:]
            if not self._handshake.done:
                self._unwatch()
                self._acceptor.loop.add_writer(self._fd, self._writable)
        return True

    def _writable(self) -> None:
        self._acceptor.loop.remove_writer(self._fd)
        output, self._pending = self._pending, b""
        if self._send(output) and not self._pending:
            self._watch()

    def _succeed(self) -> None:
        acceptor = self._acceptor
        session = self._handshake.session()
        if self._pending:
            session = replace(session, unsent=self._pending)
        self._detach()
        counters = acceptor.counters
        counters.handshakes_granted += 1
        counters.resumed += session.peer.resumed
        granted(acceptor.log, self, session, acceptor.loop.time())
        acceptor.hand_over(Handover(self.door.number, self.started, session), self._sock)
        acceptor.forget(self)

    def _break(self, reason: str, token: str) -> None:
        self._fail(HandshakeError(reason, token=token, outcome=Outcome.FAILED))

    def _fail(self, error: HandshakeError) -> None:
        acceptor = self._acceptor
        self._detach()
        try:
            if error.output:
                self._sock.send(error.output)
                Lingering(acceptor.loop, acceptor.deadlines, self._sock)
            else:
                self._sock.close()
        except OSError:
            self._sock.close()  # it is gone: there is nobody to tell
        acceptor.forget(self)
        hello = self._handshake.hello
        failed(acceptor.log, acceptor.counters, self, error, hello, acceptor.loop.time())

    def _detach(self) -> None:
        self._unwatch()
        if self._pending:
            self._acceptor.loop.remove_writer(self._fd)
        self._acceptor.deadlines.drop(self)

    def cancel(self, reason: str) -> None:
        """End a handshake for a reason of ours."""
        self._break(reason, "cancelled")

    def expired(self, now: float) -> None:
        """End a handshake that has taken too long."""
        self._break(f"not done after {now - self.started:.1f} s", "timeout")
