"""Streams of bytes whose arrival is checked by their hash, in both directions at once."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from harness.clients import trusting
from harness.homes import TIMEOUT

PIECE: Final = 1 << 16


def sha256(data: bytes | bytearray | memoryview) -> str:
    """Give the hash by which two streams are compared."""
    return hashlib.sha256(data).hexdigest()


def random_bytes(count: int) -> bytes:
    """Give bytes that look alike nowhere within a megabyte."""
    block = os.urandom(min(count, 1 << 20))
    return (block * -(-count // len(block)))[:count]


def segments(sock: socket.socket) -> int:
    """The TCP segments that a socket has received."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144)
    return int(struct.unpack_from("I", info, 140)[0])  # tcpi_segs_in, see linux/tcp.h


class Exchange:
    """What a Backend serves with: sends `down` while it takes `up` bytes, then ends.

    `received` has the hash of what each connection brought.
    """

    def __init__(self, up: int, down: bytes) -> None:
        self._up = up
        self._down = down
        self.received: list[str] = []

    def __call__(self, connection: socket.socket) -> None:
        """Serve one connection."""
        sender = threading.Thread(target=self._send, args=(connection,), daemon=True)
        sender.start()
        seen, count = hashlib.sha256(), 0
        while count < self._up and (piece := connection.recv(PIECE)):
            seen.update(piece)
            count += len(piece)
        self.received.append(seen.hexdigest())
        sender.join(TIMEOUT)

    def _send(self, connection: socket.socket) -> None:
        try:
            connection.sendall(self._down)
        except OSError:
            pass  # the client's hash will tell


class MemoryClient:
    """A TLS client over memory buffers, so that the test says what is sent when, and together.

    `module` is `ssl` or what stands in for it.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, module: Any = ssl) -> None:
        self.sock = sock
        self._module = module
        self._incoming = module.MemoryBIO()
        self._outgoing = module.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def handshake(self, *, flush: bool = True) -> None:
        """Finish the handshake; without `flush` the last flight stays in the buffer."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except self._module.SSLWantReadError:
                self.flush()
                self._fill()
        if flush:
            self.flush()

    def write(self, data: bytes) -> None:
        """Seal data into the buffer."""
        self.tls.write(data)

    def flush(self) -> None:
        """Send what the buffer has, with one call."""
        if data := self.take():
            self.sock.sendall(data)

    def take(self) -> bytes:
        """Take what the buffer has, to send it in another way."""
        return bytes(self._outgoing.read())

    def close_write(self) -> None:
        """Send close_notify, and go on reading."""
        try:
            self.tls.unwrap()
        except self._module.SSLWantReadError:
            pass  # the peer's close_notify is still to come
        self.flush()

    def read(self, count: int = PIECE) -> bytes:
        """Read; b"" at close_notify, SSLEOFError at the end of the stream without it."""
        while True:
            try:
                return bytes(self.tls.read(count))
            except self._module.SSLZeroReturnError:
                return b""
            except self._module.SSLWantReadError:
                self.flush()
                self._fill()

    def read_exactly(self, count: int) -> bytes:
        """Read so many bytes, fewer when close_notify comes first."""
        data = b""
        while len(data) < count and (piece := self.read(count - len(data))):
            data += piece
        return data

    def _fill(self) -> None:
        if data := self.sock.recv(1 << 18):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def exchange(self, up: bytes, count: int) -> str:
        """Send `up` while `count` bytes are read; give the hash of those."""
        self.sock.setblocking(False)
        seen, left, sealed = hashlib.sha256(), memoryview(up), b""
        while count or left or sealed:
            if left and not sealed:
                left = left[self.tls.write(bytes(left[:PIECE])) :]
            sealed += self.take()
            readable, writable, _ = select.select(
                [self.sock], [self.sock] if sealed else [], [], TIMEOUT
            )
            assert readable or writable, f"stalled with {count} bytes to read, {len(left)} to send"
            if writable:
                sealed = sealed[self.sock.send(sealed) :]
            if readable:
                self._fill()
                count -= self._drain(seen, count)
        self.sock.settimeout(TIMEOUT)
        return seen.hexdigest()

    def _drain(self, seen: Any, most: int) -> int:
        """Open what has come; give the bytes of data."""
        count = 0
        while count < most:
            try:
                piece = self.tls.read(min(PIECE, most - count))
            except self._module.SSLWantReadError:
                break
            assert piece, "the peer closed too early"
            seen.update(piece)
            count += len(piece)
        return count


@contextmanager
def memory_client(
    port: int,
    ca: Path,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    *,
    handshake: bool = True,
) -> Iterator[MemoryClient]:
    """Connect a MemoryClient to handfast on loopback."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:
        client = MemoryClient(sock, trusting(ca, version))
        if handshake:
            client.handshake()
        yield client
