"""systemd as the service manager: notifications, the watchdog, its sockets, and its store.

It is a protocol of environment variables and datagrams (sd_notify(3), sd_watchdog_enabled(3),
sd_listen_fds(3)) that needs no library. Without systemd the variables are missing, and every call
does nothing. The variables are removed when they are read: children are no part of this.

The store keeps descriptors for the service while that is not there (FileDescriptorStoreMax of
systemd.service(5)); it gives them back among the sockets, in any order, under the names that they
were stored by.
"""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from typing import Final

from handfast.config import Address, TcpAddress, UnixAddress
from handfast.errors import HandfastError

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_PATIENCE: Final = 1.0  # seconds to wait for a manager that does not read
_STORING: Final = 5.0  # the same, for one that has much to store
_MARGIN: Final = 5.0  # seconds to end in, once draining is over
_ANY: Final = ("::", "0.0.0.0")  # noqa: S104 - compared with, not bound
_VARIABLES: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "FDSTORE",
)
_STORED: Final = "@"
"""How the names of what is in the store begin; whatever has another name is a socket to listen on.

No unit of systemd's begins like that. It is short because all names come back in one variable, and
no variable may have more than 128 KB (MAX_ARG_STRLEN): the service could not be started any more.
"""
MOST_STORED: Final = 60_000
"""Descriptors that there is room for in that variable, at two bytes each; the rest is for names of
listening sockets."""
AT_ONCE: Final = 60
"""Descriptors that one datagram takes to the store; the kernel's limit is 253 (SCM_MAX_FD)."""

_LASTING: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
"""Those that hold for a program that takes our place, too: the PID stays."""


class ServiceManager:
    """What the service manager has told us, and how to tell it.

    `watchdog` is how often, in seconds, to call `alive`: twice in the time after which systemd
    thinks that we hang; 0 when it does not watch. `sockets` are those that it has opened and that
    nobody has claimed yet. `capacity` is how many descriptors its store may get, 0 without one, and
    `stored` what came back from there: a name and a descriptor each, the caller's to close.
    `environment` is for the program that takes our place.
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
        most = min(_number(given["FDSTORE"]), MOST_STORED)
        self.capacity = most if self._address else 0
        self.sockets: list[socket.socket] = []
        self.stored: list[tuple[str, int]] = []
        names = given["LISTEN_FDNAMES"].split(":") + [""] * passed
        for descriptor, name in zip(range(_FIRST, _FIRST + passed), names, strict=False):
            if name.startswith(_STORED):
                os.set_inheritable(descriptor, False)
                self.stored.append((name.removeprefix(_STORED), descriptor))
            else:
                self.sockets.append(_listening(descriptor))

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

    def store(self, name: str, descriptors: Sequence[int]) -> bool:
        """Have these kept, `AT_ONCE` at most; False when the manager does not take them.

        It keeps those whose peer has closed, too: what that sent is still to be read.
        """
        return self._tell("FDSTORE=1", f"FDNAME={_STORED}{name}", "FDPOLL=0", send=descriptors)

    def forget(self, name: str) -> bool:
        """Have all of this name closed and kept no more; False when the manager does not hear."""
        return self._tell("FDSTOREREMOVE=1", f"FDNAME={_STORED}{name}")

    def barrier(self) -> int:
        """Give a descriptor that hangs up when the manager has done all that it was told so far.

        See sd_notify_barrier(3). The caller closes it.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            if not self._tell("BARRIER=1", send=[writing]):
                # Nobody is to take what was not sent for what has been done.
                os.close(reading)
                raise HandfastError("the service manager does not read what it is told")
        finally:
            os.close(writing)
        return reading

    def _tell(self, *states: str, send: Sequence[int] = ()) -> bool:
        if not self._address:
            return False
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", send))]
        # A manager that is gone or stuck is no reason to stop serving.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_STORING if len(send) > 1 else _PATIENCE)
            message = "\n".join(states).encode()
            sock.sendmsg([message], rights if send else [], 0, self._address)
            return True
        return False


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
