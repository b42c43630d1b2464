"""A stand-in for systemd: what its manager does with NOTIFY_SOCKET and the store of descriptors.

By the rules of version 254 and later (sd_notify(3), sd_pid_notify_with_fds(3), sd_listen_fds(3),
systemd.service(5)): messages count from the main process alone; a descriptor that is in the store
already is closed, and so is one that there is no room for; without FDPOLL=0 one that hangs up is
dropped; FDSTOREREMOVE drops all of a name; BARRIER closes the descriptor that came with it. At a
start the sockets of the unit come first, and what is in the store behind them, the last first.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any, Final

from harness.homes import TIMEOUT

_CREDENTIALS: Final = struct.Struct("iII")
_MOST: Final = 253  # SCM_MAX_FD
_PIECE: Final = 200

# What systemd does between fork and exec: descriptors from 3 on, and the PID in the environment.
_START: Final = """
import fcntl, json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.connect(sys.argv[1])
    variables = json.loads(sock.recv(1 << 20))
    count = int(variables["LISTEN_FDS"])
    above = []
    while len(above) < count:
        for each in socket.recv_fds(sock, 1, 250)[1]:
            above.append(fcntl.fcntl(each, fcntl.F_DUPFD, count + 300))
            os.close(each)
for number, each in enumerate(above):
    os.dup2(each, 3 + number)
    os.close(each)
os.environ |= variables
if count:
    os.environ["LISTEN_PID"] = str(os.getpid())
else:
    del os.environ["LISTEN_FDS"], os.environ["LISTEN_FDNAMES"]
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Stored:
    """A descriptor in the store."""

    def __init__(self, name: str, descriptor: int, *, polled: bool) -> None:
        self.name = name
        self.descriptor = descriptor
        self.polled = polled
        found = os.fstat(descriptor)
        self.identity = found.st_dev, found.st_ino

    def hangs_up(self) -> bool:
        poll = select.poll()
        poll.register(self.descriptor, 0)
        return bool(poll.poll(0))


class Manager:
    """One service's manager, with `FileDescriptorStoreMax=most`.

    `wrapper` starts the service as `Instance` wants it; `sockets` are those of its socket unit.
    `said` is all that the service has told it.
    """

    def __init__(self, directory: Path, most: int, sockets: tuple[socket.socket, ...] = ()) -> None:
        self.most = most
        self.sockets = sockets
        self.store: list[Stored] = []
        self.refused = 0
        self._identities: set[tuple[int, int]] = set()
        self.said: list[tuple[int, dict[str, str]]] = []
        self.changed = threading.Condition()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notify.bind(str(directory / "notify"))
        self._starts = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._starts.bind(str(directory / "start"))
        self._starts.listen()
        self.wrapper = (sys.executable, "-I", "-S", "-c", _START, str(directory / "start"))
        self._main = 0
        self._reads = threading.Event()
        self._reads.set()
        self._over = False
        self._threads = [
            threading.Thread(target=each, daemon=True) for each in (self._hear, self._start)
        ]
        for each in self._threads:
            each.start()

    def close(self) -> None:
        """Stop, and close what is in the store: nobody comes for it any more."""
        self._over = True
        self._reads.set()
        for each in (self._notify, self._starts):
            each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in (self._notify, self._starts, *self.sockets):
            each.close()
        for stored in self.store:
            os.close(stored.descriptor)

    def names(self) -> list[str]:
        """The names of what is in the store, sorted."""
        with self.changed:
            return sorted(each.name for each in self.store)

    def stop_reading(self) -> None:
        """Read nothing until `go_on_reading`, as a manager that is stopped or hangs."""
        self._reads.clear()

    def go_on_reading(self) -> None:
        self._reads.set()

    def wait_for(self, name: str, count: int = 1, timeout: float = TIMEOUT) -> list[dict[str, str]]:
        """Wait until the service has told this `count` times; give all of them."""

        def heard() -> list[dict[str, str]]:
            return [said for _, said in self.said if name in said]

        with self.changed:
            assert self.changed.wait_for(lambda: len(heard()) >= count, timeout), self.said
            return heard()

    def _start(self) -> None:
        while not self._over:
            try:
                sock, _ = self._starts.accept()
            except OSError:
                return
            with sock, self.changed:
                raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                self._main = _CREDENTIALS.unpack(raw)[0]
                self._drop({each for each in self.store if each.polled and each.hangs_up()})
                names = ["handfast.socket"] * len(self.sockets)
                names += [each.name for each in reversed(self.store)]
                given = [each.fileno() for each in self.sockets]
                given += [each.descriptor for each in reversed(self.store)]
                variables = {
                    "NOTIFY_SOCKET": self._notify.getsockname(),
                    "LISTEN_FDS": str(len(given)),
                    "LISTEN_FDNAMES": ":".join(names),
                    **({"FDSTORE": str(self.most)} if self.most else {}),
                }
                sock.send(json.dumps(variables).encode())
                for start in range(0, len(given), _PIECE):
                    socket.send_fds(sock, [b"."], given[start : start + _PIECE])

    def _hear(self) -> None:
        while not self._over:
            # It takes nothing off the queue while it is not to read.
            if not select.select([self._notify], [], [], 1)[0] or not self._reads.wait():
                continue
            try:
                data, ancillary, _, _ = self._notify.recvmsg(4096, 1 << 12, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return
            with self.changed:
                self._obey(data, ancillary)
                self.changed.notify_all()

    def _obey(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        sender, descriptors = 0, []
        for _, kind, content in ancillary:
            if kind == socket.SCM_RIGHTS:
                descriptors = list(struct.unpack(f"{len(content) // 4}i", content))
            elif kind == socket.SCM_CREDENTIALS:
                sender = _CREDENTIALS.unpack(content)[0]
        message = dict(line.partition("=")[::2] for line in data.decode().splitlines())
        assert len(descriptors) <= _MOST
        if sender == self._main:
            self.said.append((sender, message))
            self._act(message, descriptors)
        for each in descriptors:
            os.close(each)

    def _act(self, message: dict[str, str], descriptors: list[int]) -> None:
        """Obey; takes out of `descriptors` what it keeps."""
        name = message.get("FDNAME", "stored")
        if "FDSTOREREMOVE" in message:
            self._drop({each for each in self.store if each.name == name})
        elif "FDSTORE" in message:
            for each in descriptors:
                self._keep(Stored(name, os.dup(each), polled=message.get("FDPOLL") != "0"))

    def _keep(self, new: Stored) -> None:
        if new.identity in self._identities:
            os.close(new.descriptor)
        elif len(self.store) >= self.most:
            os.close(new.descriptor)
            self.refused += 1
        else:
            self.store.append(new)
            self._identities.add(new.identity)

    def _drop(self, dropped: set[Stored]) -> None:
        self.store = [each for each in self.store if each not in dropped]
        for each in dropped:
            self._identities.discard(each.identity)
            os.close(each.descriptor)

    def events(self) -> list[Any]:
        """What it was told, in order, without the watchdog."""
        with self.changed:
            return [(pid, said) for pid, said in self.said if "WATCHDOG" not in said]
