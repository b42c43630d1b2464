"""Count what handfast does for a connection, a request and a megabyte: `make costs`, as root.

Times depend on the machine and on what else it does. Counts do not: of system calls, and of the
interpreter's instructions and calls. So these are compared with numbers in the repository, and a
step up of more than ten percent is an error.

The processes are those of a real installation, and the client goes step by step (`bench.steps`).
Units of work are counted one by one, and the median is taken: what happens by itself now and then
is not in it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
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
from handfast.transport.probe import probe

UNITS: Final = 9
REQUESTS: Final = 20
_WARM: Final = 4
"""Steps of bulk before any is counted: the kernel opens its windows."""
_VERSIONS: Final = ("cryptography", "pyopenssl", "msgspec")


def main(arguments: list[str] | None = None) -> int:
    """Count, print, and compare; 1 is for too much."""
    parser = argparse.ArgumentParser(prog="python -m bench.costs", description=__doc__)
    parser.add_argument("--write", action="store_true", help="take what is counted as the numbers")
    parser.add_argument("--numbers", type=Path, default=numbers.FILE, metavar="FILE")
    parser.add_argument("--homes", nargs="+", choices=HOMES, default=list(HOMES))
    options = parser.parse_args(arguments)
    if os.geteuid():
        print("costs: not counted, for strace needs root here")
        return 0
    homes = [home for home in options.homes if home != "kernel TLS" or not probe().missing]
    missing = tuple(home for home in HOMES if home not in homes)
    try:
        counts = {name: count for home in homes for name, count in count_all(home).items()}
    except (CountersError, InstallationError, LoadError, OSError) as error:
        print(f"costs: {error}", file=sys.stderr)
        return 1
    for name, count in counts.items():
        print(f"{name:<64}{count:>10,g}")
    found, known = Numbers(_versions(), counts), numbers.load(options.numbers)
    if options.write:
        numbers.save(numbers.merged(known, found, missing), options.numbers)
        return 0
    verdict = numbers.compare(known, found, missing)
    if text := numbers.report(verdict, known, found):
        print(f"\n{text}", file=sys.stderr)
    return 1 if verdict.failures else 0


def _versions() -> dict[str, str]:
    libraries = {name: metadata.version(name) for name in _VERSIONS}
    return {"Python": platform.python_version(), **libraries}


def count_all(home: str) -> Counts:
    """Count everything, for sessions that live in `home`."""
    with tempfile.TemporaryDirectory(prefix="costs-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o755)
        with traced(directory, home) as (running, read):
            counts = per_unit(running, read)
        with interpreted(directory, home) as (running, read):
            counts |= per_unit(running, read) | per_open_connection(running, read)
    return {f"{home}, {name}": count for name, count in counts.items() if count}


def per_unit(running: Installation, read: Read) -> Counts:
    """Count for a connection, a request and a megabyte."""

    def connection() -> None:
        one = running.connection()
        one.small()
        one.close()

    def requests() -> None:
        for _ in range(REQUESTS):
            kept.small()

    def count(work: Callable[[], None], name: str, units: float) -> Counts:
        return _median(running, read, work, f"per {name}", units)

    connection()  # once before, so that everything has run
    counts = count(connection, "new connection", 1)
    kept = running.connection()
    requests()
    counts |= count(requests, "small request", REQUESTS)
    for step, name in (kept.download, "MB down"), (kept.upload, "MB up"):
        for _ in range(_WARM):
            step()
        counts |= count(step, name, steps.STEP / 2**20)
    kept.close()
    return {name: count for name, count in counts.items() if "blocks" not in name}


def per_open_connection(running: Installation, read: Read) -> Counts:
    """Count the blocks of memory that an open connection takes."""
    held: list[steps.Connection] = []

    def connection() -> None:
        held.append(running.connection())
        held[-1].small()

    counts = _median(running, read, connection, "per open connection", 1)
    for each in held:
        each.close()
    return {name: count for name, count in counts.items() if "blocks" in name}


def _median(
    running: Installation, read: Read, work: Callable[[], None], suffix: str, units: float
) -> Counts:
    found: dict[str, list[float]] = {}
    for _ in range(UNITS):
        running.settle()
        before = read()
        work()
        running.settle()
        for name, count in read().items():
            found.setdefault(f"{name} {suffix}", []).append((count - before[name]) / units)
    if "COSTS_DEBUG" in os.environ:
        print(found)
    return {name: statistics.median_low(counts) for name, counts in found.items()}


if __name__ == "__main__":
    sys.exit(main())
