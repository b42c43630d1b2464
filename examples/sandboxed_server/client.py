"""The client: any client of TLS, here the standard library's. It tells the server a secret."""

from __future__ import annotations

import secrets
import socket
import ssl
from typing import Final

from line import Line, Sent
from scene import PATIENCE, Scene
from server import digest

_NAME: Final = "localhost"


def main(scene: Scene, line: Line, port: int) -> int:
    """Say a secret that nobody else knows yet, and see that it has arrived."""
    secret = secrets.token_hex(10).encode()
    with connect(scene, line, port) as server:
        line.say(f"says its secret: {secret.decode()}")
        server.sendall(secret + b"\n")
        answer = read_line(server)
        arrived = answer == digest(secret)
        line.say(f"hears: {answer.decode(errors='replace')}")
        line.say("which is right" if arrived else "which is wrong")
        line.tell(Sent(secret, arrived))
        line.hear()  # the connection stays open while the server is looked at
        if isinstance(server, ssl.SSLSocket):
            server.unwrap()
    return 0


def connect(scene: Scene, line: Line, port: int) -> socket.socket:
    """Connect to whom it takes for the server, and verify that by the certificate."""
    raw = socket.create_connection(("127.0.0.1", port), PATIENCE)
    if scene.clear:
        line.say(f"connected to port {port}")
        return raw
    context = ssl.create_default_context(cafile=str(scene.files.ca))
    try:
        secured = context.wrap_socket(raw, server_hostname=_NAME)
    except BaseException:
        raw.close()
        raise
    line.say(f"connected to port {port}: {secured.version()}, it is {_NAME}")
    return secured


def read_line(server: socket.socket) -> bytes:
    """Read to the end of the line, or of the stream."""
    data = b""
    while b"\n" not in data and (piece := server.recv(1024)):
        data += piece
    return data.partition(b"\n")[0]
