"""A process's own memory, and whether something is in it.

Whoever looks for a secret has to know it, and would find his own copy. So what is looked for comes
disguised, every byte one higher, and is compared with memory that is disguised in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final

_UP: Final = bytes((byte + 1) & 0xFF for byte in range(256))
_CHUNK: Final = 1 << 20


def disguise(secret: bytes) -> bytes:
    """Give something to look for. Done twice it is not undone, so a copy of a copy is no find."""
    return secret.translate(_UP)


class Memory:
    """This process's memory, by descriptors from before it was confined.

    They give it nothing but what it can read anyway.
    """

    def __init__(self) -> None:
        self._maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
        self._bytes = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)

    def has(self, disguised: Iterable[bytes]) -> bool:
        """Tell whether any of these is anywhere that can be written to."""
        needles = tuple(disguised)
        overlap = max(map(len, needles))
        return any(
            needle in disguise(self._read(place, min(end, place + _CHUNK + overlap)))
            for start, end in self._written()
            for place in range(start, end, _CHUNK)
            for needle in needles
        )

    def _written(self) -> Iterator[tuple[int, int]]:
        for line in self._lines():
            place, flags, *_ = line.split(maxsplit=2)
            if flags.startswith("rw"):
                start, end = place.split("-")
                yield int(start, 16), int(end, 16)

    def _lines(self) -> list[str]:
        os.lseek(self._maps, 0, os.SEEK_SET)
        text = b""
        while piece := os.read(self._maps, 1 << 16):
            text += piece
        return text.decode().splitlines()

    def _read(self, start: int, end: int) -> bytes:
        try:
            return os.pread(self._bytes, end - start, start)
        except OSError:
            return b""  # it was unmapped meanwhile
