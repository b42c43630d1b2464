"""The standard library's ssl as a client, in the few shapes that tests need."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from harness.homes import TIMEOUT


def trusting(ca: Path, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Make a context that trusts one CA, for one version of TLS if one is given."""
    context = ssl.create_default_context(cafile=str(ca))
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def connect(
    port: int,
    context: ssl.SSLContext,
    session: ssl.SSLSession | None = None,
    *,
    name: str = "localhost",
    source: str = "127.0.0.1",
    lead: bytes = b"",
) -> ssl.SSLSocket:
    """Connect to handfast on loopback, ask for a name and finish the handshake.

    `source` is the address to come from; `lead` is sent before the handshake, as a proxy does.
    """
    raw = socket.create_connection(("127.0.0.1", port), TIMEOUT, (source, 0))
    try:
        raw.sendall(lead)
        return context.wrap_socket(raw, server_hostname=name, session=session)
    except BaseException:
        raw.close()
        raise


def receive(client: socket.socket, count: int) -> bytes:
    """Read exactly so many bytes; fewer at the end of the stream."""
    data = bytearray()
    while len(data) < count and (piece := client.recv(count - len(data))):
        data += piece
    return bytes(data)


def echoes(client: socket.socket, data: bytes = b"are you there?") -> bool:
    """Tell whether what is sent to an echoing backend comes back."""
    client.sendall(data)
    return receive(client, len(data)) == data


def read_to_end(client: socket.socket) -> bytes:
    """Read until the peer closes; a reset counts as an end."""
    data = b""
    try:
        while piece := client.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data
