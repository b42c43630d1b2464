"""Take TLS sessions from handfast, as an application: with their sockets, and without a proxy.

    with handfast.app.listen("/run/shop/tls.sock", group="handfast") as listener:
        for connection in listener:
            threading.Thread(target=serve, args=(connection,)).start()

Sessions have to be taken as they come: one that waits for longer than handfast's `connect-timeout`
is lost, and so is its client. That is why there is a thread for each. With asyncio it is
`async for connection in listener`, and `await` before each call. handfast has
`target: handoff:/run/shop/tls.sock` for it. See docs/applications.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from handfast.app.connection import Connection
from handfast.app.errors import SessionError
from handfast.app.listener import Listener, listen
from handfast.app.peer import Peer

if TYPE_CHECKING:
    from handfast.app.asynchronous import AsyncConnection

__all__ = ["AsyncConnection", "Connection", "Listener", "Peer", "SessionError", "listen"]


def __getattr__(name: str) -> object:
    """Import asyncio for those who use it."""
    if name == "AsyncConnection":
        from handfast.app.asynchronous import AsyncConnection  # noqa: PLC0415

        return AsyncConnection
    raise AttributeError(name)
