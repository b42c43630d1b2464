"""Serve an ASGI application on sessions from handfast, with Hypercorn as the HTTP server.

    async def main():
        with handfast.app.listen("/run/shop/tls.sock", group="handfast") as listener:
            await handfast.app.asgi.serve(application, listener)

Needs `pip install handfast[asgi]`. It is Hypercorn because that speaks HTTP/2, which handfast
negotiates with `alpn: [h2, http/1.1]`. Hypercorn serves streams, and asks them about their socket
and their TLS: what it gets here for streams are connections, which answer for the real client.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from cryptography import x509
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    LifespanState,
    Scope,
)

from handfast.app.asynchronous import AsyncConnection
from handfast.app.listener import Listener
from handfast.app.peer import Peer

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def tls_extension(peer: Peer) -> dict[str, Any]:
    """Describe a session as ASGI's TLS extension does, version 0.2."""
    return {
        "server_cert": None,  # it is with the acceptor, beside its key
        "client_cert_chain": [ssl.DER_cert_to_PEM_cert(each) for each in peer.certificates],
        "client_cert_name": _subject(peer.certificate),
        "client_cert_error": None,  # handfast hands no such session over
        "tls_version": peer.version_code,
        "cipher_suite": peer.ciphersuite_code,
    }


def _subject(certificate: bytes | None) -> str | None:
    if certificate is None:
        return None
    try:
        return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
    except ValueError:
        return None  # OpenSSL reads what this parser refuses


class _WithTls:
    """An application that is told of the TLS session of one connection."""

    def __init__(self, application: ASGIFramework, peer: Peer) -> None:
        self._application = application
        self._tls = tls_extension(peer)

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] != "lifespan":
            scope["extensions"]["tls"] = self._tls
        await self._application(scope, receive, send)


class _Answers:
    """What Hypercorn asks a socket and its TLS object."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        version = socket.AF_INET6 if ":" in peer.address else socket.AF_INET
        self.family = version if peer.address else socket.AF_UNIX

    def getpeername(self) -> tuple[str, int]:
        return self._peer.address, self._peer.port

    def getsockname(self) -> tuple[str, int]:
        return self._peer.local

    def selected_alpn_protocol(self) -> str | None:
        return self._peer.alpn or None


class _Stream:
    """A connection in the shape of asyncio's StreamReader and StreamWriter."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._answers = _Answers(connection.peer)
        self._unwritten = bytearray()
        self._ended = False
        self._closing: asyncio.Task[None] | None = None

    def get_extra_info(self, name: str) -> _Answers | None:
        return self._answers if name in {"socket", "ssl_object"} else None

    async def read(self, limit: int) -> bytes:
        data = await self._connection.read(limit)
        self._ended = not data
        return data

    def at_eof(self) -> bool:
        return self._ended

    def write(self, data: bytes) -> None:
        self._unwritten += data

    async def drain(self) -> None:
        data, self._unwritten = self._unwritten, bytearray()
        await self._connection.write(data)

    def write_eof(self) -> None:
        raise NotImplementedError  # as with TLS in asyncio; closing says the end

    def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._connection.close())

    async def wait_closed(self) -> None:
        self.close()
        if self._closing is not None:
            await asyncio.shield(self._closing)


class _Server:
    """Serves connections, each by a task of its own."""

    def __init__(self, application: ASGIFramework, config: Config) -> None:
        self._application = application
        self._config = config
        self._state: LifespanState = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.context = WorkerContext(config.max_requests)

    @contextlib.asynccontextmanager
    async def lifespan(self) -> Any:
        """Tell the application that serving begins, and that it has ended."""
        loop = asyncio.get_running_loop()
        lifespan = Lifespan(ASGIWrapper(self._application), self._config, loop, self._state)
        task = loop.create_task(lifespan.handle_lifespan())
        await lifespan.wait_for_startup()
        if task.done():
            task.result()
        try:
            yield
        finally:
            await lifespan.wait_for_shutdown()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def accept(self, listener: Listener) -> None:
        """Serve what comes, until the listener is closed."""
        async for connection in listener:
            task = asyncio.get_running_loop().create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: AsyncConnection) -> None:
        stream = cast("Any", _Stream(connection))
        application = ASGIWrapper(
            cast("ASGIFramework", _WithTls(self._application, connection.peer))
        )
        loop = asyncio.get_running_loop()
        try:
            await TCPServer(
                application, loop, self._config, self.context, self._state, stream, stream
            ).run()
        finally:
            connection.abort()

    async def drain(self) -> None:
        """Let connections end; those that do not in `graceful_timeout` are aborted."""
        await self.context.terminated.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._config.graceful_timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


async def serve(
    application: ASGIFramework,
    listener: Listener,
    config: Config | None = None,
    *,
    shutdown_trigger: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM or, if there is one, until `shutdown_trigger` returns.

    `config` is Hypercorn's; what it says of sockets, certificates and workers is not used. The
    listener is closed in the end.
    """
    server = _Server(application, config or Config())
    async with server.lifespan():
        tasks = [
            asyncio.ensure_future(each)
            for each in (
                server.accept(listener),
                (shutdown_trigger or _signalled)(),
                server.context.terminate.wait(),
            )
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            listener.close()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await server.drain()
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _signalled() -> None:
    """Wait for a signal that ends the process."""
    loop, received = asyncio.get_running_loop(), asyncio.Event()
    for each in _SIGNALS:
        loop.add_signal_handler(each, received.set)
    try:
        await received.wait()
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
