"""TLS with a target: the client's side of a handshake, over a socket that is connected."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from handfast.errors import BackendError
from handfast.tls.alerts import Alert
from handfast.tls.handshake import HandshakeError
from handfast.tls.names import ServerName, mismatch
from handfast.tls.openssl import OpenSSLEngine
from handfast.tls.session import Role, Session
from handfast.tls.trust import Trust
from handfast.tls.writer import RecordWriter
from handfast.transport.loop import Loop

_READ_SIZE: Final = 1 << 15
_REASON: Final = "no TLS session with the target"

# Made before there is a sandbox, in which its callback could not be made: see `tls.trust`.
_ENGINE: Final = OpenSSLEngine(role=Role.CLIENT)


class Securing:
    """One handshake with a target, whose certificate has to be for `name` and to lead to `trust`.

    Ends with one call: of `secured` with the session and what the socket did not take yet, or of
    `failed`; with none after `cancel`. The socket stays the caller's. `lead` goes before the first
    flight, in the same write.
    """

    __slots__ = (
        "_failed",
        "_handshake",
        "_loop",
        "_name",
        "_pending",
        "_secured",
        "_sock",
        "_trust",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        name: ServerName,
        trust: Trust,
        secured: Callable[[Session, bytes], None],
        failed: Callable[[BackendError], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._name = name
        self._trust = trust
        self._secured = secured
        self._failed = failed
        self._handshake = _ENGINE.start("", 0, server_name=name.sni)
        self._pending = b""

    def start(self, lead: bytes) -> None:
        """Send the first flight, and wait for the answer."""
        if self._send(lead + self._handshake.feed(b"")):
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        if not data:
            self._fail("closed during the handshake")
            return
        try:
            output = self._handshake.feed(data)
        except HandshakeError as error:
            self._fail(error.reason, error.output)
            return
        if self._handshake.done:
            self._finish(output)
        else:
            self._send(output)

    def _finish(self, output: bytes) -> None:
        chain = self._handshake.chain()
        session = self._handshake.session()
        if problem := self._trust.problem(chain) or mismatch(chain[0], self._name):
            self._fail(problem, output + RecordWriter(session).alert(Alert.BAD_CERTIFICATE))
        elif self._send(output):
            self.cancel()
            self._secured(session, self._pending)

    def _send(self, output: bytes) -> bool:
        """Write a flight behind what is pending; False when the handshake is at its end."""
        output = self._pending + output
        try:
            sent = self._sock.send(output) if output else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._fail(error.strerror or str(error))
            return False
        self._pending = output[sent:]
        if self._pending:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        else:
            self._loop.remove_writer(self._sock.fileno())
        return True

    def _writable(self) -> None:
        self._send(b"")

    def _fail(self, description: str, output: bytes = b"") -> None:
        self.cancel()
        try:
            if output:
                self._sock.send(output)  # the alert: it tells the target's operator what is wrong
        except OSError:
            pass  # then only our log tells
        self._failed(BackendError(_REASON, description=description))

    def cancel(self) -> None:
        """Leave the socket alone."""
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
