"""What a process can reach, found by trying it in that process, for real.

An attempt that the kernel refuses raises OSError; one that is let through undoes what it did. One
that has nothing to try with (no such descriptor is left) gives False.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct

from line import Outcome, Tried, Try
from memory import Memory

_libc: Final = ctypes.CDLL(None, use_errno=True)
_DESCRIPTORS: Final = 64
_PATIENCE: Final = 2.0


class Situation(Struct, frozen=True):
    """What the attempts are made with; `end` is the process's own end of the channel, if any."""

    order: Try
    memory: Memory
    end: socket.socket | None


class _Piece(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _sockets() -> Iterator[socket.socket]:
    """Give every socket of this process, one after the other, as something to ask only."""
    for number in range(_DESCRIPTORS):
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
        except OSError:
            continue  # there is no such descriptor
        sock = socket.socket(fileno=number)
        try:
            yield sock
        finally:
            sock.detach()


def _key_file(here: Situation) -> bool:
    with open(here.order.key_file, "rb") as file:  # noqa: PTH123 - as plain as can be
        return bool(file.read(1))


def _any_file(_: Situation) -> bool:
    with open("/etc/passwd", "rb") as file:  # noqa: PTH123
        return bool(file.read(1))


def _holds_listener(_: Situation) -> bool:
    return any(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for one in _sockets())


def _listens(_: Situation) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", 0))
        except OSError:
            pass  # `listen` binds by itself
        sock.listen(1)
    return True


def _holds_client(_: Situation) -> bool:
    families = (socket.AF_INET, socket.AF_INET6)
    return any(one.family in families and _has_peer(one) for one in _sockets())


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _connects(here: Situation) -> bool:
    with socket.socket() as sock:
        sock.settimeout(_PATIENCE)
        sock.connect(("127.0.0.1", here.order.port))
    return True


def _sends_back(here: Situation) -> bool:
    """Send on the channel; the admin has no end of it."""
    if here.end is None:
        return False
    here.end.send(b"open sesame")
    return True


def _forks(_: Situation) -> bool:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return True


def _runs(_: Situation) -> bool:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    return True


def _signals(here: Situation) -> bool:
    os.kill(here.order.other, 0)
    return True


def _opens_memory(here: Situation) -> bool:
    os.close(os.open(f"/proc/{here.order.other}/mem", os.O_RDONLY))
    return True


def _reads_memory(here: Situation) -> bool:
    """Read where the other, being a fork of the same process, has the object None."""
    kept = ctypes.create_string_buffer(8)
    ours, theirs = _Piece(ctypes.addressof(kept), 8), _Piece(id(None), 8)
    result = _libc.process_vm_readv(
        here.order.other, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return bool(result)


def _becomes_root(_: Situation) -> bool:
    os.setresuid(0, 0, 0)
    return True


def _has_key(here: Situation) -> bool:
    return here.memory.has(here.order.needles["key"])


def _has_secret(here: Situation) -> bool:
    return here.memory.has(here.order.needles["secret"])


# The search comes first, before the attempts make memory of their own; becoming root last.
ATTEMPTS: Final[dict[str, Callable[[Situation], bool]]] = {
    "find the key in its memory": _has_key,
    "find the secret in its memory": _has_secret,
    "find a listening socket": _holds_listener,
    "find the client's socket": _holds_client,
    "send on the channel": _sends_back,
    "read the key file": _key_file,
    "read /etc/passwd": _any_file,
    "make a listening socket": _listens,
    "connect out": _connects,
    "fork": _forks,
    "run a program": _runs,
    "signal another process": _signals,
    "open another's /proc/PID/mem": _opens_memory,
    "read another's memory": _reads_memory,
    "become root": _becomes_root,
}

MEANT: Final = {
    "find the key in its memory": {"acceptor"},
    "find the secret in its memory": {"server"},
    "find a listening socket": {"acceptor"},
    "find the client's socket": {"server"},
    "send on the channel": {"acceptor"},
}
"""Which processes are meant to reach something; of all that is not here, none is."""


def explore(order: Try, memory: Memory, end: socket.socket | None) -> Tried:
    """Try everything, in this process."""
    here = Situation(order, memory, end)
    uid = os.getuid()
    return Tried(uid, {name: _outcome(attempt, here) for name, attempt in ATTEMPTS.items()})


def _outcome(attempt: Callable[[Situation], bool], here: Situation) -> Outcome:
    try:
        return Outcome(attempt(here))
    except OSError as error:
        return Outcome(reached=False, refusal=errno.errorcode.get(error.errno or 0, str(error)))
