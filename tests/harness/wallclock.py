"""handfast with a wall clock that a test turns while it runs: `python -m harness.wallclock serve`.

Linux has no second wall clock to turn: the real one is everybody's, and a time namespace has none.
So `time.time` and `datetime.now` are moved by what a file says, which is mapped into memory before
anything else begins, and so is there in every process, sandboxed or not. Monotonic time is left
alone, as it is by whoever sets a clock.
"""

from __future__ import annotations

import datetime
import mmap
import os
import struct
import sys
import time
from pathlib import Path
from typing import Final, Self

VARIABLE: Final = "WALL_CLOCK"
_SECONDS: Final = struct.Struct("d")


class WallClock:
    """The file, from the side of the test. Give `environment` to what is started."""

    def __init__(self, file: Path) -> None:
        self.environment = {VARIABLE: str(file), "PYTHONPATH": _path()}
        self._file = file
        self._file.write_bytes(_SECONDS.pack(0))

    def jump(self, seconds: float) -> None:
        """Set the clock so far from the real one, for all processes at once."""
        with self._file.open("r+b") as stream:
            stream.write(_SECONDS.pack(seconds))


def _path() -> str:
    here = str(Path(__file__).parents[1])
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


def turn(file: Path) -> None:
    """Have this process and its children go by the file."""
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), _SECONDS.size, prot=mmap.PROT_READ)
    real = time.time

    def offset() -> float:
        (seconds,) = _SECONDS.unpack_from(mapped)
        return float(seconds)

    class Turned(datetime.datetime):
        """The datetime type, whose `now` goes by the file."""

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Self:
            """Give the time now."""
            return super().now(tz) + datetime.timedelta(seconds=offset())

    time.time = lambda: real() + offset()
    datetime.datetime = Turned  # type: ignore[misc]  # for all who import it from here on


if __name__ == "__main__":
    turn(Path(os.environ[VARIABLE]))
    from handfast.cli import main

    sys.exit(main())
