"""Plain TCP services for handfast to forward to."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

TIMEOUT = 60.0


def echo(connection: socket.socket) -> None:
    """Send back what comes, until the end."""
    while data := connection.recv(65536):
        connection.sendall(data)


def over_tls(
    context: ssl.SSLContext, serve: Callable[[socket.socket], None] = echo
) -> Callable[[socket.socket], None]:
    """Give what a Backend serves with that ends TLS itself, and closes in order."""

    def run(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            serve(tls)
            tls.unwrap()

    return run


def server_context(chain: Path, key: Path) -> ssl.SSLContext:
    """Make what a TLS server goes by."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


class Backend:
    """Serves each connection on a thread of its own with `serve`, and closes it afterwards.

    `errors` collects the OSErrors that `serve` met (a RST, for one).
    """

    def __init__(self, serve: Callable[[socket.socket], None] = echo, family: int = socket.AF_INET,
                 address: object = ("127.0.0.1", 0)) -> None:  # fmt: skip
        self._serve = serve
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        self._sock.bind(address)  # type: ignore[arg-type]  # as the family wants it
        self._sock.listen(512)
        self._threads: list[threading.Thread] = []
        self._connections: set[socket.socket] = set()
        self.errors: list[OSError] = []
        self.served = threading.Semaphore(0)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    @property
    def target(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def named(self) -> str:
        """The same by name: for this one there is a resolver."""
        return f"tcp://localhost:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._sock.accept()
            except OSError:
                return
            connection.settimeout(TIMEOUT)
            self._connections.add(connection)
            thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(self, connection: socket.socket) -> None:
        try:
            self._serve(connection)
        except OSError as error:
            self.errors.append(error)
        finally:
            connection.close()
            self._connections.discard(connection)
            self.served.release()

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._acceptor.join(TIMEOUT)
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed by its thread meanwhile
        for thread in self._threads:
            thread.join(TIMEOUT)
