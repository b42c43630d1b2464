"""The file that names the process: one running handfast holds it, by a lock.

The lock (flock(2)) is what counts, not the file: the kernel drops it when its holder ends, however
that happens, so a file that nobody has locked is stale and is taken over. The path is opened so
that nobody who may write to its directory can have another file overwritten.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress

from handfast.errors import ConfigError, HandfastError

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class PidFile:
    """A pidfile with mode 0644 that this process holds until `close`; children must not keep it.

    Raises HandfastError if another process holds it, ConfigError if it cannot be made. One that the
    program before held, in this process, is `inherited`, with its lock.
    """

    def __init__(self, path: str, inherited: int = -1) -> None:
        self.path = path
        self._descriptor = inherited if inherited >= 0 else _take(path)
        os.fchmod(self._descriptor, 0o644)  # whatever the umask
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def fileno(self) -> int:
        """Give the descriptor with the lock, for the program that follows."""
        return self._descriptor

    def close(self) -> None:
        """Remove the file and give up the lock, in this order: the name is nobody else's yet."""
        if self._descriptor < 0:
            return
        with suppress(OSError):  # it is gone, or its directory is
            if _is_at(self.path, self._descriptor):
                os.unlink(self.path)  # noqa: PTH108 - text in, text out
        os.close(self._descriptor)
        self._descriptor = -1


def _take(path: str) -> int:
    """Open and lock the file that is at `path` when that is done."""
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise HandfastError(
                f"{path}: handfast is running already, as process {pid or '(not known yet)'}; "
                "stop it with `handfast stop`, or set `pidfile:` for a second one"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise _refusal(path, str(error.strerror)) from error
        os.close(descriptor)  # its last holder has removed it since: try again


def _open(path: str) -> int:
    try:
        descriptor = os.open(path, _FLAGS, 0o644)
    except OSError as error:
        raise _refusal(path, str(error.strerror)) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise _refusal(path, "it is a device, or another name of some file")
    return descriptor


def _is_at(path: str, descriptor: int) -> bool:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _refusal(path: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{path}: cannot write the pidfile ({reason}); "
        "name a file in a directory that is there and that the starting user may write to"
    )
