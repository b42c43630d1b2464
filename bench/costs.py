"""Count what handfast does for a connection, a request and a megabyte: `make costs`, as root.

Times depend on the machine and on what else it does. Counts do not: of system calls, and of the
interpreter's instructions and calls. So these are compared with numbers in the repository, and a
step up of more than ten percent is an error.

The processes are those of a real installation, and the client goes step by step (`bench.steps`).
Units of work are counted one by one, and the least is taken: what chance does, such as to wake a
process twice for what it could have met at once, only ever adds.

With sessions in the kernel, system calls alone are counted. How often a relay looks for a record of
which the kernel has a part only is a matter of time.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final

from bench import numbers, steps
from bench.counters import CountersError, Read, interpreted, traced
from bench.installation import HOMES, Installation, InstallationError
from bench.load import LoadError
from bench.numbers import Counts, Numbers

UNITS: Final = 9
REQUESTS: Final = 20
_WARM: Final = 4
"""Steps of bulk before any is counted: the kernel opens its windows."""
_LIBRARIES: Final = ("cryptography", "pyopenssl", "msgspec")


def main(arguments: list[str] | None = None) -> int:
    """Count, print, and compare; 1 is for too much."""
    parser = argparse.ArgumentParser(prog="python -m bench.costs", description=__doc__)
    parser.add_argument("--write", action="store_true", help="take what is counted as the numbers")
    parser.add_argument("--numbers", type=Path, default=numbers.FILE, metavar="FILE")
    parser.add_argument("--homes", nargs="+", choices=HOMES, default=["user space"])
    parser.add_argument("--units", type=int, default=UNITS, help=f"to count of each ({UNITS})")
    options = parser.parse_args(arguments)
    if os.geteuid():
        print("costs: not counted, for strace needs root here")
        return 0
    missing = tuple(home for home in HOMES if home not in options.homes)
    counts: Counts = {}
    try:
        for home in options.homes:
            counts |= count_all(home, options.units)
    except (CountersError, InstallationError, LoadError, OSError) as error:
        print(f"costs: {error}", file=sys.stderr)
        return 1
    for name, count in counts.items():
        print(f"{name:<64}{count:>10,g}")
    found, known = Numbers(_versions(options.homes), counts), numbers.load(options.numbers)
    if options.write:
        return _write(numbers.merged(known, found, missing), options.numbers)
    verdict = numbers.compare(known, found, missing)
    if text := numbers.report(verdict, known, found):
        print(f"\n{text}", file=sys.stderr)
    return 1 if verdict.failures else 0


def _versions(homes: list[str]) -> dict[str, str]:
    versions = {"Python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _LIBRARIES}
    return versions | ({"Linux": platform.release()} if "kernel TLS" in homes else {})


def _write(new: Numbers, file: Path) -> int:
    text = numbers.text_of(new)
    try:
        file.write_text(text)
    except OSError as error:  # in the guest, nothing of ours can be written
        print(f"{error}; this is what it is to have:\n{text}")
        return 1
    return 0


def count_all(home: str, times: int = UNITS) -> Counts:
    """Count everything, for sessions that live in `home`."""
    with tempfile.TemporaryDirectory(prefix="costs-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o755)
        with traced(directory, home) as (running, read):
            counts = per_unit(running, read, times)
        if home == "kernel TLS":
            return _named(home, counts)
        with interpreted(directory, home) as (running, read):
            counts |= per_unit(running, read, times) | per_open_connection(running, read, times)
    return _named(home, counts)


def _named(home: str, counts: Counts) -> Counts:
    return {f"{home}, {name}": count for name, count in counts.items() if count}


def per_unit(running: Installation, read: Read, times: int = UNITS) -> Counts:
    """Count for a connection, a request and a megabyte."""

    def connection() -> None:
        one = running.connection()
        one.small()
        one.close()

    def requests() -> None:
        for _ in range(REQUESTS):
            kept.small()

    def count(work: Callable[[], None], name: str, units: float) -> Counts:
        found = _each(running, read, work, times)
        return {
            f"{what} per {name}": min(counts) / units
            for what, counts in found.items()
            if what.partition(": ")[2] != "blocks"
        }

    connection()  # once before, so that everything has run
    counts = count(connection, "new connection", 1)
    kept = running.connection()
    requests()
    counts |= count(requests, "small request", REQUESTS)
    for step, name in (kept.download, "MiB down"), (kept.upload, "MiB up"):
        for _ in range(_WARM):
            step()
        counts |= count(step, name, steps.STEP / 2**20)
    kept.close()
    return counts


def per_open_connection(running: Installation, read: Read, times: int) -> Counts:
    """Count the blocks of memory that an open connection takes."""
    held: list[steps.Connection] = []

    def connection() -> None:
        held.append(running.connection())
        held[-1].small()

    found = _each(running, read, connection, times)
    for each in held:
        each.close()
    return {
        f"{what} per open connection": min(counts)
        for what, counts in found.items()
        if what.partition(": ")[2] == "blocks"
    }


def _each(
    running: Installation, read: Read, work: Callable[[], None], times: int
) -> dict[str, list[int]]:
    """Count what is done for some work, each of so many times."""
    found: dict[str, list[int]] = {}
    for _ in range(times):
        running.settle()
        before = read()
        work()
        running.settle()
        for what, count in read().items():
            found.setdefault(what, []).append(count - before[what])
    return found


if __name__ == "__main__":
    sys.exit(main())
