"""systemd as the service manager: notifications, the watchdog, and sockets that it has opened.

It is a protocol of environment variables and datagrams (sd_notify(3), sd_watchdog_enabled(3),
sd_listen_fds(3)) that needs no library. Without systemd the variables are missing, and every call
does nothing. The variables are removed when they are read: children are no part of this.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

from handfast.config import Address, TcpAddress, UnixAddress
from handfast.errors import HandfastError

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_PATIENCE: Final = 1.0  # seconds to wait for a manager that does not read
_MARGIN: Final = 5.0  # seconds to end in, once draining is over
_ANY: Final = ("::", "0.0.0.0")  # noqa: S104 - compared with, not bound
_VARIABLES: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
)

_LASTING: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Those that hold for a program that takes our place, too: the PID stays."""


class ServiceManager:
    """What the service manager has told us, and how to tell it.

    `watchdog` is how often, in seconds, to call `alive`: twice in the time after which systemd
    thinks that we hang; 0 when it does not watch. `sockets` are those that it has opened and that
    nobody has claimed yet. `environment` is for the program that takes our place.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Take the variables out of the environment.

        Raises HandfastError if one of the sockets is no stream socket that listens.
        """
        given = {name: environment.pop(name, "") for name in _VARIABLES}
        self.environment = {name: given[name] for name in _LASTING if given[name]}
        self._address = _notify_address(given["NOTIFY_SOCKET"])
        # Without WATCHDOG_PID it is for whoever reads it; LISTEN_FDS needs its LISTEN_PID.
        ours = {"", str(os.getpid())}
        watched = given["WATCHDOG_PID"] in ours
        self.watchdog = _number(given["WATCHDOG_USEC"]) / 2e6 if watched else 0.0
        passed = _number(given["LISTEN_FDS"]) if given["LISTEN_PID"] in ours - {""} else 0
        self.sockets = [_listening(each) for each in range(_FIRST, _FIRST + passed)]

    def claim(self, address: Address) -> socket.socket | None:
        """Give the socket that listens on this address; it is the caller's from now on."""
        for sock in self.sockets:
            if _listens_on(sock, address):
                self.sockets.remove(sock)
                return sock
        return None

    def left(self) -> list[tuple[str, socket.socket]]:
        """Give the sockets that nobody has claimed, each with its address as `Address` has it."""
        return [(_text(each), each) for each in self.sockets]

    def ready(self, status: str = "") -> None:
        """Everything serves, for the first time or after a reload, whatever came of that."""
        self._tell("READY=1", *([f"STATUS={status}"] if status else []))

    def reloading(self) -> None:
        """A reload begins; `ready` has to follow. systemd needs the time from version 253 on."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, seconds: float) -> None:
        """The end begins, and may take so many seconds: systemd is not to kill us before."""
        usec = int((seconds + _MARGIN) * 1_000_000)
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={usec}")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`."""
        self._tell(f"STATUS={text}")

    def alive(self) -> None:
        """Give the watchdog its sign of life."""
        self._tell("WATCHDOG=1")

    def _tell(self, *states: str) -> None:
        if not self._address:
            return
        # A manager that is gone or stuck is no reason to stop serving.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_PATIENCE)
            sock.sendto("\n".join(states).encode(), self._address)


def _notify_address(text: str) -> str:
    """Give the address of a socket in the file system or (@) in the abstract namespace."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else 0


def _listening(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise HandfastError(
            f"LISTEN_FDS promises a socket as descriptor {descriptor}: {error.strerror}"
        ) from error
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        name = sock.getsockname()
        sock.close()
        raise HandfastError(
            f"the socket {name} that systemd passes does not listen for streams; "
            "use ListenStream= with Accept=no in the socket unit"
        )
    sock.setblocking(False)
    return sock


def _text(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return str(UnixAddress(path=name))
    return str(TcpAddress(host=name[0], port=name[1]))


def _listens_on(sock: socket.socket, address: Address) -> bool:
    name = sock.getsockname()
    if isinstance(address, UnixAddress):
        return bool(sock.family == socket.AF_UNIX and name == address.path)
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or name[1] != address.port:
        return False
    if not address.host:
        return name[0] in _ANY
    try:
        found = socket.getaddrinfo(address.host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(each[4][0] == name[0] for each in found)
