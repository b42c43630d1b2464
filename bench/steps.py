"""A client that goes step by step, so that what handfast does for it never depends on time.

Each step is one send, and the next begins when nobody has anything left to do: so two things never
happen at once by chance, which handfast would do in one turn of its loop.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from bench.backend import PATTERN, REQUEST, bulk_request, sink_request
from bench.load import MESSAGE, PATIENCE, Client, LoadError

STEP: Final = 128 * 1024
"""Bytes of bulk in one step: as many as a relay takes at once."""
_SAMPLES: Final = 3
_PAUSE: Final = 0.003


def settle(pids: Iterable[int]) -> None:
    """Wait until all of the processes wait; raises LoadError when they do not stop working."""
    deadline = time.monotonic() + PATIENCE
    same, before = 0, None
    while same < _SAMPLES:
        if time.monotonic() > deadline:
            raise LoadError(f"there is still work going on after {PATIENCE:.0f} s")
        now = [_activity(pid) for pid in pids]
        waiting = all(state == "S" for state, _ in now)
        same = same + 1 if waiting and now == before else 0
        before = now
        time.sleep(_PAUSE)


def _activity(pid: int) -> tuple[str, int]:
    """Give a process's state, and how often it has begun to wait or was interrupted."""
    state, switches = "", 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "State":
            state = value.split()[0]
        elif name.endswith("_ctxt_switches"):
            switches += int(value)
    return state, switches


class Connection:
    """A TLS connection whose every flight is one send."""

    def __init__(self, to: Client, settled: Callable[[], None]) -> None:
        self._settled = settled
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        assert to.context is not None
        self._tls = to.context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._socket = socket.create_connection(("127.0.0.1", to.port), timeout=PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._until_done(self._tls.do_handshake)
        settled()

    def small(self) -> None:
        """Send one small request, and check its answer."""
        self._ask(MESSAGE, MESSAGE)

    def download(self) -> None:
        """Ask for one step's bytes, and receive them."""
        self._ask(bulk_request(STEP), PATTERN[:STEP])
        self._settled()

    def upload(self) -> None:
        """Send one step's bytes, and wait until the backend has them."""
        announced = sink_request(STEP - REQUEST)
        self._ask(announced + PATTERN[: STEP - REQUEST], b"." * REQUEST)
        self._settled()

    def close(self) -> None:
        """Close in order, and wait until handfast has done so too."""
        self._settled()
        self._until_done(self._tls.unwrap)
        self._settled()
        self._socket.close()
        self._settled()

    def _ask(self, request: bytes, answer: bytes) -> None:
        self._tls.write(request)
        self._send()
        got = b""
        while len(got) < len(answer):
            got += self._until_done(self._tls.read)
        if got != answer:
            raise LoadError(f"{len(got)} bytes came back that are not the ones expected")

    def _until_done(self, action: Callable[[], object]) -> bytes:
        """Do what takes answers of the peer; give what was read. A failure closes the socket."""
        try:
            return self._do(action)
        except BaseException:
            self._socket.close()
            raise

    def _do(self, action: Callable[[], object]) -> bytes:
        while True:
            try:
                result = action()
            except ssl.SSLWantReadError:
                self._send()
                data = self._socket.recv(65536)
                if not data:
                    raise LoadError("the connection ended") from None
                self._incoming.write(data)
            else:
                self._send()
                return result if isinstance(result, bytes) else b""

    def _send(self) -> None:
        if self._outgoing.pending:
            self._socket.sendall(self._outgoing.read())
