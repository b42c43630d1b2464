"""Where an application takes sessions: a Unix socket that handfast connects to."""

from __future__ import annotations

import errno
import grp
import math
import os
import pwd
import select
import socket
import stat
import time
from collections.abc import AsyncIterator, Collection, Iterator
from typing import TYPE_CHECKING, Final, Self

from handfast.app.connection import Connection
from handfast.app.intake import Intake, Taken

if TYPE_CHECKING:
    from handfast.app.asynchronous import AsyncConnection

_BACKLOG: Final = 1024
HANDFAST: Final = ("handfast",)


def listen(
    path: str | os.PathLike[str],
    *,
    mode: int = 0o660,
    group: str | None = None,
    trusted: Collection[str] = HANDFAST,
) -> Listener:
    """Take sessions at a path, where handfast has `target: handoff:PATH`.

    The socket gets `mode` and `group`, whom handfast's `user` has to be in. Its directory should be
    one that nobody else can write to. Sessions are taken from root, this process's own user and
    those named in `trusted`; names that this machine does not have are nobody's. A socket that is
    left over from an earlier run is replaced; raises OSError (EADDRINUSE) when it is in use, and
    KeyError for a group that is not there.
    """
    where = os.fspath(path)
    gid = -1 if group is None else grp.getgrnam(group).gr_gid
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        _bind(sock, where)
        # Nobody can connect before it listens.
        os.chmod(where, mode)  # noqa: PTH101 - text in
        os.chown(where, -1, gid)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return Listener(sock, trusted=trusted)


def _bind(sock: socket.socket, path: str) -> None:
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_left_over(path):
            raise OSError(error.errno, error.strerror, path) from None
        os.unlink(path)  # noqa: PTH108
        sock.bind(path)


def _is_left_over(path: str) -> bool:
    """Tell whether this is a socket at which nobody listens."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


class Listener:
    """Gives connections: to `for` and `accept` as Connection, to `async for` as AsyncConnection.

    `sock` is a listening SOCK_SEQPACKET socket; it may come from a service manager. After a fork,
    each process may take sessions from it.
    """

    def __init__(self, sock: socket.socket, *, trusted: Collection[str] = HANDFAST) -> None:
        self._sock = sock
        self._users = {0, os.geteuid()} | {uid for name in trusted if (uid := _uid(name)) >= 0}
        self._intake: Intake | None = None
        self._process = 0
        self.closed = False

    @property
    def intake(self) -> Intake:
        """What takes sessions for this process."""
        if self.closed:
            raise OSError(errno.EBADF, "the listener is closed")
        if self._intake is None or self._process != os.getpid():
            self._process = os.getpid()
            self._intake = Intake(self._sock.dup(), self._users.__contains__)
        return self._intake

    def accept(self, timeout: float | None = None) -> Connection:
        """Wait for a session, and give its connection; TimeoutError after so many seconds."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        return Connection(*self._wait(self.intake, until))

    def _wait(self, intake: Intake, until: float) -> Taken:
        poll = select.poll()
        poll.register(intake, select.POLLIN)
        while (taken := intake.turn()) is None:
            now = time.monotonic()
            if now >= until:
                raise TimeoutError("no session came")
            left = min(until, intake.next_deadline()) - now
            poll.poll(None if left == math.inf else max(1.0, left * 1000))
        return taken

    def __iter__(self) -> Iterator[Connection]:
        """Give connections for ever, or until the listener is closed."""
        while not self.closed:
            yield self.accept()

    def __aiter__(self) -> AsyncIterator[AsyncConnection]:
        """Give connections for ever, or until the listener is closed."""
        from handfast.app.asynchronous import connections  # noqa: PLC0415 - asyncio is slow to import

        return connections(self)

    def close(self) -> None:
        """Take no more. The socket's path stays: the next run replaces it."""
        if self.closed:
            return
        self.closed = True
        if self._intake is not None and self._process == os.getpid():
            self._intake.close()
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _uid(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return -1
