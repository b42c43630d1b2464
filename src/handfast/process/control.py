"""The supervisor's end of the control socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from handfast.errors import HandfastError
from handfast.process.commands import MAX_REQUEST, Answer, Request
from handfast.process.listening import is_stale
from handfast.transport.loop import Loop

_CLIENTS: Final = 32
_PATIENCE: Final = 5.0
_RETRY_SECONDS: Final = 0.1


class Pending:
    """A client of the control socket that waits for its answer."""

    __slots__ = ("_closing", "_data", "_descriptor", "_loop", "_output", "_server", "sock")

    def __init__(self, server: ControlServer, loop: Loop, sock: socket.socket) -> None:
        self._server = server
        self._loop = loop
        self._data = b""
        self._output = b""
        self._closing = False
        self.sock = sock
        self._descriptor = sock.fileno()

    def read(self) -> None:
        """Read more of the request; hand it on when the line is whole."""
        try:
            piece = self.sock.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._data += piece
        if b"\n" in self._data:
            self._loop.remove_reader(self._descriptor)
            self._dispatch(self._data.partition(b"\n")[0])
        elif not piece or len(self._data) > MAX_REQUEST:
            self.close()

    def _dispatch(self, line: bytes) -> None:
        try:
            request = msgspec.json.decode(line, type=Request)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.answer(Answer(error=f"not a request: {error}"))
            self.close()
            return
        self._server.handle(request, self)

    def answer(self, answer: Answer) -> None:
        """Send the answer; what does not fit at once has a few seconds to be taken."""
        if self not in self._server.clients:
            return
        self._output = msgspec.json.encode(answer) + b"\n"
        self._write()
        if self._output:
            self._loop.add_writer(self._descriptor, self._write)
            self._loop.call_later(_PATIENCE, self.drop)

    def _write(self) -> None:
        try:
            self._output = self._output[self.sock.send(self._output) :]
        except BlockingIOError:
            return
        except OSError:
            self.drop()
            return
        if not self._output:
            self._loop.remove_writer(self._descriptor)
            if self._closing:
                self.drop()

    def close(self) -> None:
        """Close the connection when its answer is sent."""
        self._closing = True
        if not self._output:
            self.drop()

    def drop(self) -> None:
        """Close the connection, once: its descriptor's number may be another's afterwards."""
        if self not in self._server.clients:
            return
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
        self._server.clients.discard(self)
        self._output = b""
        self.sock.close()

    def give_up(self) -> None:
        """Close a connection that has sent no request in time."""
        if b"\n" not in self._data:
            self.close()


class ControlServer:
    """Listens on the control socket, which it makes with mode 0600 and removes at the end."""

    def __init__(
        self,
        path: Path,
        loop: Loop,
        handle: Callable[[Request, Pending], None],
        inherited: socket.socket | None = None,
    ) -> None:
        """Listen on `path`, by the socket of the program before if that is `inherited`."""
        self.handle = handle
        self.clients: set[Pending] = set()
        self.path = path
        self._loop = loop
        self._sock = inherited or _bind(path)
        self._listen()

    def fileno(self) -> int:
        """Give the descriptor that listens, for the program that follows."""
        return self._sock.fileno()

    def adopt(self, sock: socket.socket) -> Pending:
        """Take over who waits for an answer of the program before."""
        sock.setblocking(False)
        client = Pending(self, self._loop, sock)
        self.clients.add(client)
        return client

    def _listen(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # descriptors or memory are short, and the client still waits
            self._loop.remove_reader(self._sock.fileno())
            self._loop.call_later(_RETRY_SECONDS, self._listen)
            return
        if len(self.clients) >= _CLIENTS:
            sock.close()
            return
        sock.setblocking(False)
        client = Pending(self, self._loop, sock)
        self.clients.add(client)
        self._loop.add_reader(sock.fileno(), client.read)
        self._loop.call_later(_PATIENCE, client.give_up)

    def close(self) -> None:
        """Remove the socket; then close the connections, which tells those who wait for the end."""
        self.path.unlink(missing_ok=True)
        self._sock.close()
        for client in list(self.clients):
            client.close()


def _bind(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        if not path.parent.exists():
            os.umask(0o077)
            path.parent.mkdir(parents=True)
            os.umask(0o177)
        if is_stale(str(path)):
            path.unlink()
        sock.bind(str(path))
        sock.listen(8)
    except OSError as error:
        sock.close()
        if path.is_socket():
            raise HandfastError(
                f"handfast is running with this configuration already ({path}); "
                "stop it with `handfast stop`, or set `control:` for a second one"
            ) from None
        raise HandfastError(f"control socket {path}: {error.strerror or error}") from None
    finally:
        os.umask(mask)
    return sock
