"""Bytes that one process hands to others by descriptor, and that nobody can change afterwards."""

from __future__ import annotations

import fcntl
import os
from typing import Final

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def seal(name: str, data: bytes) -> int:
    """Put the bytes into a sealed memfd (memfd_create(2)); the caller closes the descriptor."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def unseal(descriptor: int) -> bytes:
    """Read what `seal` was given. The file position, which all holders share, stays as it is."""
    size = os.fstat(descriptor).st_size
    data = b""
    while len(data) < size and (piece := os.pread(descriptor, size - len(data), len(data))):
        data += piece
    return data
