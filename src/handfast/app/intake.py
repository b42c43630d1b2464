"""Where sessions come in: connections of handfast's, each with one message, each from a friend.

Whoever can connect to the socket could hand over a made-up session of any client. So the kernel is
asked who it is (SO_PEERCRED), and others are sent away before anything of theirs is read. Messages
may come in any order and after a while, so all connections are watched at once. Nothing here waits.
"""

from __future__ import annotations

import array
import logging
import math
import os
import select
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from handfast.errors import HandfastError
from handfast.handover.application import MAX_DESCRIPTORS, MAX_MESSAGE, TAKEN, Offer, decode

Taken: TypeAlias = tuple[socket.socket, Offer]

MESSAGE_SECONDS: Final = 10.0
"""How long a connection may take to bring its message. handfast connects first, and then has
`connect-timeout` for the rest, 5 s if it is not changed."""
REST_SECONDS: Final = 0.1
MAX_WAITING: Final = 256

_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid
_FD_SIZE: Final = array.array("i").itemsize
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_DESCRIPTORS * _FD_SIZE)
_log: Final = logging.getLogger("handfast.app")


class Intake:
    """Takes sessions that come to a listening socket, from users whom `trusts` approves of.

    `turn` is worth a call when `fileno` is readable, and when `next_deadline` has come. For want of
    descriptors it rests a while; handfast waits, or tries another target.
    """

    def __init__(self, listening: socket.socket, trusts: Callable[[int], bool]) -> None:
        listening.setblocking(False)
        self._listening = listening
        self._trusts = trusts
        self._waiting: dict[int, tuple[socket.socket, float]] = {}  # the oldest first
        self._taken: deque[Taken] = deque()
        self._rests_until = 0.0  # 0 while it does not
        self.closed = False
        self.on_close: Callable[[], None] | None = None
        self._epoll = select.epoll()
        self._epoll.register(listening, select.EPOLLIN)

    def fileno(self) -> int:
        """Give a descriptor that is readable when there is something to do."""
        return self._epoll.fileno()

    def next_deadline(self) -> float:
        """Give the time, by CLOCK_MONOTONIC, at which there is something to do in any case."""
        oldest = self._oldest()
        return min(oldest, self._rests_until or oldest)

    def _oldest(self) -> float:
        """Give the time at which the oldest connection is given up."""
        return next((until for _, until in self._waiting.values()), math.inf)

    def turn(self) -> Taken | None:
        """Do what there is to do; give a session, if there is one."""
        if not self._taken:
            for descriptor, _ in self._epoll.poll(0):
                if self._rests_until:
                    break
                if not self._has_room():
                    self._rest()
                elif descriptor == self._listening.fileno():
                    self._accept()
                elif descriptor in self._waiting:
                    self._take(self._leave(descriptor))
            self._expire()
        return self._taken.popleft() if self._taken else None

    def _has_room(self) -> bool:
        """Tell whether a descriptor is free. A client's socket that finds none would be lost."""
        try:
            os.close(os.dup(self._listening.fileno()))
        except OSError:
            return False
        return True

    def _rest(self) -> None:
        """Look at nothing for a while."""
        _log.warning("no session is taken for now: no descriptor is free")
        self._rests_until = time.monotonic() + REST_SECONDS
        for descriptor in (self._listening.fileno(), *self._waiting):
            self._epoll.unregister(descriptor)

    def _go_on(self) -> None:
        self._rests_until = 0.0
        for descriptor in (self._listening.fileno(), *self._waiting):
            self._epoll.register(descriptor, select.EPOLLIN)

    def close(self) -> None:
        """Give everything back; sessions that were taken and not fetched are closed."""
        self.closed = True
        if self.on_close is not None:
            self.on_close()
        for descriptor in list(self._waiting):
            self._leave(descriptor).close()
        for sock, offer in self._taken:
            offer.session.wipe()
            sock.close()
        self._taken.clear()
        self._epoll.close()
        self._listening.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # want of memory, or of descriptors in the whole system
            self._rest()
            return
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(raw)
        if not self._trusts(user):
            _log.warning("user %d connected, who is not trusted; name it in `trusted`", user)
            connection.close()
            return
        if len(self._waiting) >= MAX_WAITING:
            self._leave(next(iter(self._waiting))).close()
        connection.setblocking(False)
        self._waiting[connection.fileno()] = (connection, time.monotonic() + MESSAGE_SECONDS)
        self._epoll.register(connection, select.EPOLLIN)

    def _take(self, connection: socket.socket) -> None:
        """Take the one message of a connection, and say so."""
        with connection:
            try:
                taken = receive(connection)
            except (OSError, HandfastError) as error:
                _log.warning("a session was not taken: %s", error)
                return
            if taken is None:
                return
            try:
                connection.send(TAKEN, socket.MSG_NOSIGNAL)
            except OSError:
                # handfast has given it up, and the client: it is nobody's.
                taken[1].session.wipe()
                taken[0].close()
                return
            self._taken.append(taken)

    def _leave(self, descriptor: int) -> socket.socket:
        connection, _ = self._waiting.pop(descriptor)
        if not self._rests_until:
            self._epoll.unregister(descriptor)
        return connection

    def _expire(self) -> None:
        now = time.monotonic()
        while self._oldest() <= now:
            self._leave(next(iter(self._waiting))).close()
        if 0 < self._rests_until <= now:
            self._go_on()


def receive(connection: socket.socket) -> Taken | None:
    """Read the message of a connection, with its socket; None when it was closed without one.

    Raises HandfastError for what is no such message, and OSError; no descriptor stays open then.
    """
    message = memoryview(bytearray(MAX_MESSAGE + 1))
    length, ancillary, flags, _ = connection.recvmsg_into(
        [message], _ANCILLARY, socket.MSG_CMSG_CLOEXEC
    )
    descriptors = _descriptors(ancillary)
    try:
        if not length and not descriptors:
            return None
        if flags & socket.MSG_CTRUNC and not descriptors:
            raise HandfastError("no descriptor is free for the client's socket")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(descriptors) != 1:
            raise HandfastError("a message cut short, or not with one descriptor")
        offer = decode(message[:length])
        if not stat.S_ISSOCK(os.fstat(descriptors[0]).st_mode):
            raise HandfastError("a message with something else than a socket")
        sock = socket.socket(fileno=descriptors[0])
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    finally:
        message[:length] = bytes(length)  # it has secrets
    sock.setblocking(False)
    return sock, offer


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return list(found)
