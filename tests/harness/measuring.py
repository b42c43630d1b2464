"""A plugin of coverage.py: what forked children did is measured, though they may open no file.

coverage.py writes its data to a file that it opens when a process ends. A process of handfast can
open none by then, and nothing in handfast makes an exception for tests. So the file is open before:
a process that forks opens it, its children inherit the descriptor, and each appends one record as
it ends. `python -m harness.measuring` turns the records into data that `coverage combine` takes. A
child that is killed leaves none, as without a sandbox.
"""

from __future__ import annotations

import os
import sqlite3.dump  # noqa: F401 - imported at its first use, else
import struct
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NoReturn

from coverage import Coverage, CoverageData
from coverage.plugin_support import Plugins
from coverage.types import TConfigurable

RECORDS: Final = Path(__file__).parents[2] / ".coverage.children-records"
_LENGTH: Final = struct.Struct("=Q")


class _Children:
    """What this process does for those that it forks, and they for theirs."""

    def __init__(self) -> None:
        self._file = -1
        self._identity = (0, 0)
        self._exit = os._exit
        self._is_child = False
        os._exit = self._end
        os.register_at_fork(before=self._open, after_in_child=self._begin)

    def _open(self) -> None:
        if not self._is_open():
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(RECORDS, flags, 0o644)
            self._identity = _identity(self._file)

    def _is_open(self) -> bool:
        """Tell whether the descriptor is still the file's: a daemon closes all that it inherits."""
        try:
            return self._file >= 0 and _identity(self._file) == self._identity
        except OSError:
            return False

    def _begin(self) -> None:
        """Keep the descriptor when `fork` closes what a child is not told to keep."""
        self._is_child = True
        module = sys.modules.get("handfast.process.fork")
        if module is None:
            return
        close = module._close_all_but

        def close_all_but_ours(keep: Iterable[int]) -> None:
            close({*keep, self._file})

        module._close_all_but = close_all_but_ours  # type: ignore[attr-defined]  # a module's name

    def _end(self, status: int) -> NoReturn:
        try:
            if self._is_child:
                self._record()
        except Exception:  # noqa: BLE001 - the process ends here, and somebody should hear of it
            traceback.print_exc()
        finally:
            self._exit(status)

    def _record(self) -> None:
        measured = Coverage.current()
        if measured is None or measured._collector is None:
            return
        data = CoverageData(str(RECORDS), no_disk=True)  # named, or it would ask where it is
        measured._collector.use_data(data, None)
        if measured._collector.flush_data():
            self._open()
            record = data.dumps()
            os.write(self._file, _LENGTH.pack(len(record)) + record)  # whole: it is one append


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def coverage_init(reg: Plugins, options: TConfigurable) -> None:
    """Be loaded by coverage.py, in every process that it measures."""
    if not hasattr(coverage_init, "children"):
        coverage_init.children = _Children()  # type: ignore[attr-defined]  # once a process


def collect() -> None:
    """Turn the records into a file that `coverage combine` finds, and remove them."""
    records = RECORDS.read_bytes()
    RECORDS.unlink()
    collected = CoverageData(basename=str(RECORDS.with_name(".coverage")), suffix="children")
    place = 0
    while place < len(records):
        (length,) = _LENGTH.unpack_from(records, place)
        place += _LENGTH.size + length
        one = CoverageData(no_disk=True)
        one.loads(records[place - length : place])
        collected.update(one)
    collected.write()


if __name__ == "__main__":
    collect()
