"""A relay: takes sessions from the hand-over channel and carries their bytes.

It holds session values and the targets' sockets; no private key and no listening socket. The
buffers here are the only ones: every connection of the process uses them, one call at a time.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from handfast.config import TcpAddress, Timeouts, UnixAddress
from handfast.errors import HandfastError
from handfast.handover import channel
from handfast.handover.message import Handover
from handfast.observe.counters import Counters
from handfast.observe.events import SystemFault
from handfast.observe.log import Log
from handfast.relay.connection import Connection
from handfast.relay.resolver import Resolver
from handfast.relay.state import State
from handfast.tls.writer import room_for
from handfast.transport.deadlines import Deadlines
from handfast.transport.loop import Loop

READ_SIZE: Final = 8 << 14
"""Bytes of one read: eight records' worth, so that one `send` carries up to eight."""


WARM_LIMIT: Final = 512
"""Connections that may keep their derived keys, 5 KB each, without having been used just now."""
WARM_SECONDS: Final = 0.25


class Service(msgspec.Struct, frozen=True):
    """What a relay knows of a listener: its address for the log, and where its clients go."""

    listen_ip: str
    listen_port: int
    family: int
    target: TcpAddress | UnixAddress


class Relay:
    """The connections of one relay process."""

    def __init__(
        self,
        loop: Loop,
        receiver: socket.socket,
        services: tuple[Service, ...],
        timeouts: Timeouts,
        log: Log,
        ended: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.services = services
        self.timeouts = timeouts
        self.log = log
        self.counters = Counters()
        self.deadlines = Deadlines(loop)
        self.resolver = Resolver(loop)
        # One byte more than is read: sealing puts the content type behind the last.
        self.buffer: Final = memoryview(bytearray(READ_SIZE + (1 << 15)))
        self.chunk: Final = self.buffer[:READ_SIZE]
        self.output: Final = memoryview(bytearray(room_for(len(self.buffer))))
        self.connections: Final[set[Connection]] = set()
        self._warm: deque[Connection] = deque()
        self._receiver = receiver
        self._draining = False
        self._ended = ended
        loop.add_reader(receiver.fileno(), self._readable)

    def _readable(self) -> None:
        self._take()

    def _take(self) -> bool:
        """Take one session from the channel; False when there was none."""
        try:
            taken = channel.receive(self._receiver)
        except (HandfastError, OSError) as error:
            self._refuse(str(error))
            return True
        if taken is not None:
            handover, descriptor = taken
            if handover.listener < len(self.services):
                self._adopt(handover, descriptor)
            else:
                os.close(descriptor)
                self._refuse(f"no listener {handover.listener}")
        return taken is not None

    def _refuse(self, reason: str) -> None:
        self.log.emit(SystemFault(error_msg="a hand-over was refused", error_desc=reason))

    def _adopt(self, handover: Handover, descriptor: int) -> None:
        service = self.services[handover.listener]
        # The acceptor made it non-blocking, which is a property of the open file: no call here.
        client = socket.socket(service.family, socket.SOCK_STREAM, 0, descriptor)
        self.counters.relayed += 1
        self.counters.active += 1
        connection = Connection(self, service, client, handover)
        self.connections.add(connection)
        connection.start()

    def warm_up(self, connection: Connection) -> None:
        """Let a connection derive its keys, and take them from those that were used long ago.

        Two of the oldest are looked at each time, so that their number goes down again too.
        """
        connection.warm = True
        warm = self._warm
        warm.append(connection)
        for _ in range(2):
            if len(warm) <= WARM_LIMIT:
                return
            oldest = warm.popleft()
            if oldest.state is State.CLOSED:
                continue
            if connection.touched - oldest.touched < WARM_SECONDS:
                warm.append(oldest)
            else:
                oldest.park()

    def forget(self, connection: Connection) -> None:
        """Take a connection that has ended out of the books."""
        counters = self.counters
        counters.active -= 1
        counters.bytes_in += connection.reader.bytes
        counters.bytes_out += connection.writer.bytes
        self.connections.discard(connection)
        if self._draining and not self.connections:
            self._ended()

    def drain(self) -> None:
        """Take what is in the channel and no more; the relay ends with its last connection.

        Every acceptor has ended when this is called, so nothing comes after it.
        """
        if self._draining:
            return
        while self._take():
            pass
        self._draining = True
        self.loop.remove_reader(self._receiver.fileno())
        if not self.connections:
            self._ended()

    def end_all(self, reason: str) -> None:
        """End every connection, because the time to drain is over."""
        for connection in list(self.connections):
            connection.end(reason)
