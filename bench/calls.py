"""Count the system calls of a relay, with sessions in user space and in the kernel: `make calls`.

Times say nothing on a slow or busy machine, but this is exact everywhere: strace(1) counts every
call of the relay while a load runs. Needs root, and a kernel with TLS for the second half.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench import load, measure, systems

HOMES: Final = {"user space": "handfast", "kernel": "handfast-kernel"}
REQUESTS: Final = 2000
MB: Final = 1_000_000
_ROW: Final = re.compile(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", re.MULTILINE)
_NOT_COUNTED: Final = {"total", "clock_gettime"}
"""Reading the clock is no system call, but on kernels without a vDSO (User Mode Linux)."""
_ATTACHED: Final = b"attached"
_SHOWN: Final = 5

Counts = dict[str, int]


def main() -> int:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.calls", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="of each transfer (200)")
    size = parser.parse_args().megabytes * MB
    loads: dict[str, tuple[Callable[[systems.Running], None], float]] = {
        f"small request, per request ({REQUESTS})": (_requests, REQUESTS),
        "download, per GB": (lambda proxy: load.bulk(proxy.client, size, 1), size / 1e9),
        "upload, per GB": (lambda proxy: load.upload(proxy.client, size), size / 1e9),
    }
    core = min(os.sched_getaffinity(0))
    print(f"kernel: {os.uname().release}; calls of the relay, {size // MB} MB a transfer\n")
    with ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="calls-")))
        directory.chmod(0o755)
        port = closing.enter_context(systems.backend(core))
        site = systems.Site(directory, *systems.certificate(directory), port, core)
        for home, name in HOMES.items():
            try:
                proxy = closing.enter_context(systems.running(systems.SYSTEMS[name], site))
            except systems.StartError as error:
                print(f"{home}: {error}", file=sys.stderr)
                return 1
            for title, (work, units) in loads.items():
                counts = _count(proxy, work, directory / "strace")
                _print(home, title, counts, units)
    return 0


def _requests(proxy: systems.Running) -> None:
    with load.kept(proxy.client, 1) as held:
        load.requests(held, REQUESTS)


def _count(proxy: systems.Running, work: Callable[[systems.Running], None], file: Path) -> Counts:
    """Count what the relay calls while the work is done, its connection included."""
    work(proxy)  # once without, so that everything has run before
    with _traced(_relay(proxy.pid), file):
        work(proxy)
    counts = {name: int(count) for count, name in _ROW.findall(file.read_text())}
    return {name: count for name, count in counts.items() if name not in _NOT_COUNTED}


@contextmanager
def _traced(pid: int, file: Path) -> Iterator[None]:
    command = ["strace", "-c", "-o", str(file), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if _ATTACHED not in said:
            raise measure.MeasureError(f"strace: {said.decode().strip()}")
        yield
        time.sleep(measure.QUIET)  # the relay writes its log a moment later
        strace.send_signal(signal.SIGINT)


def _relay(pid: int) -> int:
    for each in measure.tree(pid):
        if Path(f"/proc/{each.pid}/cmdline").read_bytes().startswith(b"handfast: relay"):
            return each.pid
    raise measure.MeasureError("there is no relay")


def _print(home: str, title: str, counts: Counts, units: float) -> None:
    most = sorted(counts.items(), key=lambda item: -item[1])[:_SHOWN]
    shown = ", ".join(f"{name} {_number(count / units)}" for name, count in most)
    print(f"{home:<11} {title:<34} {_number(sum(counts.values()) / units):>8}   {shown}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
