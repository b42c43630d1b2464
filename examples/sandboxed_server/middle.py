"""The man in the middle: passes on every byte, both ways, and keeps it."""

from __future__ import annotations

import select
import socket
from typing import Final

from line import Line, Ready, Recorded
from scene import PATIENCE

_RECORDS: Final = {20: "change cipher", 21: "alert", 22: "handshake", 23: "sealed data"}
_EXCERPT: Final = 40


def main(line: Line, port: int) -> int:
    """Stand between one client and the server's port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        line.tell(Ready(listener.getsockname()[1]))
        client, _ = listener.accept()
    with client, socket.create_connection(("127.0.0.1", port), PATIENCE) as server:
        to_server, to_client = pass_on(line, client, server)
    line.tell(Recorded(to_server, to_client))
    line.hear()
    return 0


def pass_on(line: Line, client: socket.socket, server: socket.socket) -> tuple[bytes, bytes]:
    """Pass bytes on until both sides have ended; give what went to the server, and what came."""
    kept = {client: b"", server: b""}
    open_ends = {client: server, server: client}
    client.settimeout(PATIENCE)
    while open_ends:
        ready = select.select(list(open_ends), [], [], PATIENCE * 2)[0]
        if not ready:
            break
        for source in ready:
            data = step(source, open_ends[source])
            if data:
                kept[source] += data
                line.say(f"{'->' if source is client else '<-'} {len(data)}: {describe(data)}")
            else:
                del open_ends[source]
    return kept[client], kept[server]


def step(source: socket.socket, target: socket.socket) -> bytes:
    """Pass on what there is; give it, or nothing at the end."""
    try:
        data = source.recv(1 << 16)
        if data:
            target.sendall(data)
        else:
            target.shutdown(socket.SHUT_WR)
    except OSError:
        return b""  # one of the two has gone: so has this direction
    return data


def describe(data: bytes) -> str:
    """Say what an eavesdropper makes of some bytes: the kinds of their records, or the text."""
    kinds = records(data)
    if kinds:
        return "TLS " + ", ".join(dict.fromkeys(_RECORDS[kind] for kind in kinds))
    return repr(data[:_EXCERPT].decode("ascii", "replace"))


def records(data: bytes) -> list[int]:
    """Give the types of the TLS records that make up these bytes; none if they are no records."""
    kinds = []
    while data:
        if len(data) < 5 or data[0] not in _RECORDS or data[1] != 3:
            return []
        kinds.append(data[0])
        data = data[5 + int.from_bytes(data[3:5], "big") :]
    return kinds
