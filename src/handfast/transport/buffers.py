"""Buffers of which only what was used takes memory."""

from __future__ import annotations

import mmap


def untouched(size: int) -> memoryview:
    """Give a writable buffer of zeros, whose pages the kernel provides at their first use.

    A `bytearray` writes its zeros, and so has all of its pages from the start.
    """
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
