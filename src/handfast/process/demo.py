"""The demo service of the embedded default: plain HTTP that says hello.

It stands for any plain TCP service, and knows nothing of TLS.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from handfast.process.messages import Ready, send

_MAX_HEAD: Final = 16384
_TIMEOUT: Final = 30.0
_TEXT: Final = b"""Hello from a plain HTTP service that knows nothing of TLS.
handfast ended the TLS session for it. The `auth` line in handfast's log names the
protocol version, the cipher suite and the key exchange (group) of this very connection.
"""
_ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_TEXT), _TEXT)
)


def serve(control: socket.socket, listening: socket.socket, confine: Callable[[], None]) -> int:
    """Serve until the supervisor is gone; `confine` gives up all that this does not need."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(_listen(listening))
    confine()  # only now: asyncio calls listen(2) again, on what listens already
    loop.add_reader(control.fileno(), loop.stop)  # the supervisor sends a demo nothing: it is EOF
    send(control, Ready())
    loop.run_forever()
    return 0


async def _listen(listening: socket.socket) -> None:
    await asyncio.start_server(_client, sock=listening, limit=_MAX_HEAD)


async def _client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(_TIMEOUT):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(_ANSWER)
                await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError):
        pass  # the client has finished, or does not speak HTTP: the demo owes it nothing
    finally:
        writer.close()
