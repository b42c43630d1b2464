"""What the kernel's TLS can do, found out by doing it.

For each cipher and version, and each direction on its own, a loopback connection gets real keys:
the kernel seals a record and our record layer opens it, and the other way round. A list of features
would tell less: the module may be there and a cipher not, and a cipher for one version alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Final

from handfast.errors import HandfastError
from handfast.tls.keys import SUITES, Suite
from handfast.tls.reader import RecordReader
from handfast.tls.record import MAX_PLAINTEXT
from handfast.tls.session import Direction, Role, Session
from handfast.tls.writer import RecordWriter, room_for
from handfast.transport.kernel import (
    TLS_TX,
    KernelReader,
    KernelWriter,
    Support,
    cipher_of,
    enable,
    install,
)

_SECONDS: Final = 2.0
_MESSAGE: Final = b"kernel TLS?"


def probe() -> Support:
    """Find out; a kernel without TLS gets its module loaded first where this process may do that.

    Takes some milliseconds, and waits for two seconds at most for bytes that do not come.
    """
    try:
        with _pair() as (one, _):
            enable(one)
    except OSError as error:
        return Support(missing=error.strerror or str(error))
    kinds: dict[tuple[int, int], list[Suite]] = {}
    for suite in SUITES.values():
        kinds.setdefault((suite.version, cipher_of(suite)), []).append(suite)
    tx, rx = set(), set()
    for suites in kinds.values():
        codes = {each.code for each in suites}
        tx |= codes if _works(_sends, suites[0]) else set()
        rx |= codes if _works(_receives, suites[0]) else set()
    return Support(tx=frozenset(tx), rx=frozenset(rx), rekey=_works(_rekeys, SUITES[0x1301]))


def _works(what: Callable[[Suite], bool], suite: Suite) -> bool:
    try:
        return what(suite)
    except (OSError, HandfastError):
        return False


def _sends(suite: Suite) -> bool:
    """Tell whether we can open what the kernel seals."""
    ours, theirs = _sessions(suite)
    with _pair() as (one, other):
        enable(one)
        KernelWriter.move(one, RecordWriter(ours), rekey=False)
        one.sendall(_MESSAGE)
        buffer = memoryview(bytearray(MAX_PLAINTEXT))
        out = memoryview(bytearray(MAX_PLAINTEXT))
        count = other.recv_into(buffer)
        return bytes(out[: RecordReader(theirs).open(buffer, count, out)]) == _MESSAGE


def _receives(suite: Suite) -> bool:
    """Tell whether the kernel opens what we seal."""
    ours, theirs = _sessions(suite)
    with _pair() as (one, other):
        enable(one)
        KernelReader.move(one, RecordReader(ours), rekey=False)
        buffer = memoryview(bytearray(_MESSAGE + b"\0"))
        out = memoryview(bytearray(room_for(len(_MESSAGE))))
        other.sendall(out[: RecordWriter(theirs).seal(buffer, len(_MESSAGE), out)])
        return one.recv(MAX_PLAINTEXT) == _MESSAGE


def _rekeys(suite: Suite) -> bool:
    """Tell whether the kernel takes a second key, as from Linux 6.14 on; before, it is busy."""
    with _pair() as (one, _):
        enable(one)
        for session in (_sessions(suite)[0], _sessions(suite)[0]):
            install(one, TLS_TX, RecordWriter(session))
        return True


def _sessions(suite: Suite) -> tuple[Session, Session]:
    """Make both ends of a session, with random secrets."""
    secrets = os.urandom(suite.secret_length), os.urandom(suite.secret_length)

    def end(role: Role, read: bytes, write: bytes) -> Session:
        return Session(role, suite.code, Direction(bytearray(read)), Direction(bytearray(write)))

    return end(Role.SERVER, *secrets), end(Role.CLIENT, *reversed(secrets))


@contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two TCP sockets over loopback; they block, for a limited time."""
    with closing(_listen()) as listening:
        listening.settimeout(_SECONDS)
        with socket.create_connection(listening.getsockname()[:2], _SECONDS) as one:
            other, _ = listening.accept()
            with other:
                other.settimeout(_SECONDS)
                yield one, other


def _listen() -> socket.socket:
    with suppress(OSError):  # a machine without IPv4
        return socket.create_server(("127.0.0.1", 0))
    return socket.create_server(("::1", 0), family=socket.AF_INET6)
