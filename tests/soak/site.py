"""What the soak runs: handfast with a hundred certificates, backends, and a disk for its log."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from harness.backends import Backend
from harness.clients import trusting
from harness.footprint import Footprint
from harness.homes import TIMEOUT
from harness.load import reset, warm_up
from harness.pki import Identity, issue
from harness.recorded import Recorded, certificates_yaml, configuration
from harness.wallclock import WallClock

CERTIFICATES: Final = 100
ROOM: Final = 16 << 20
"""Bytes that a process may have grown by since its handfast was started and warm."""
_BEFORE_THE_RESET: Final = 300_000
_SMALL_LOG: Final = 1 << 20
_OTHERS: Final = 99


def resetting(connection: socket.socket) -> None:
    """Echo a while, then break the connection."""
    count = 0
    while count < _BEFORE_THE_RESET and (data := connection.recv(65536)):
        connection.sendall(data)
        count += len(data)
    reset(connection)


class Site:
    """One place where handfast runs, and is started again when it has ended."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        directory.chmod(0o755)
        self.disk = directory / "disk"
        self.disk.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(self.disk)], check=True
        )
        stack.callback(subprocess.run, ["umount", "--lazy", str(self.disk)], check=True)
        self._backend = stack.enter_context(Backend())
        self._breaker = stack.enter_context(Backend(resetting))
        self._root = issue("soak root", ca=True)
        self._server = issue("localhost", self._root)
        others = [issue(f"name-{number}.test", self._root) for number in range(_OTHERS)]
        self._others = certificates_yaml(others, directory)
        self.chain, self.key = self._server.write(directory, "server")
        ca = directory / "root.pem"
        ca.write_bytes(self._root.pem())
        self.context: ssl.SSLContext = trusting(ca)
        self.clock = WallClock(directory / "clock")
        self.metrics = directory / "metrics.sock"
        self.reloading = threading.Lock()
        self.running: Recorded
        self.baseline: Footprint
        self.port = 0

    def start(self) -> Self:
        """Start handfast, and learn what it occupies when it is warm."""
        route = f"    routes:\n      - {{sni: [breaker.test], target: '{self._breaker.target}'}}\n"
        yaml = configuration(
            self._backend.named,
            self.chain,
            self.key,
            extra=f"metrics: unix:{self.metrics}\nhandshake-timeout: 3s\ndrain-timeout: 20s",
            listener=self._others + route,
        )
        self.running = Recorded(
            self.disk, yaml, environment=self.clock.environment, module="harness.wallclock"
        )
        self.running.wait("listening")
        self.port = self.running.port()
        warm_up(self.port, self.context)
        for _ in range(3):
            assert self.running.reload().error == ""
        warm_up(self.port, self.context)
        self.baseline = self.running.footprint()
        return self

    def new_certificate(self) -> None:
        """Put another certificate and key in the place of the first, and have them loaded."""
        fresh: Identity = issue("localhost", self._root)
        with self.reloading:
            fresh.write(self.chain.parent, "server")
            assert self.running.reload().error == ""

    def scrape(self, path: str) -> bytes:
        """Ask the monitor."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(str(self.metrics))
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: soak\r\n\r\n".encode())
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        return answer

    def tidy(self) -> None:
        """Forget the log so far, and begin another when it has become large."""
        self.running.forget()
        if self.running.log.stat().st_size > _SMALL_LOG:
            self.running.log.unlink()
            self.running.reopen_log()
            warm_up(self.port, self.context)
            self.running.follow()
