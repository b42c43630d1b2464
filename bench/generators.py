"""The load generators of Debian: how each is called, and what it said.

openssl s_time does full handshakes; wrk makes as many requests as are answered, over kept
connections or over a new, resumed one each; h2load sends them at a fixed rate, and logs each; curl
moves files. Whatever fails raises LoadError, for a figure with failed requests means nothing.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.load import PATIENCE, LoadError

CONNECTIONS: Final = 16
"""Connections at once, of all generators where not said otherwise."""


def _url(port: int, path: str = "/") -> str:
    return f"https://127.0.0.1:{port}{path}"


def _run(command: list[str], seconds: float = 0.0) -> str:
    """Run a generator that is to take `seconds`; give what it said; raises LoadError."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds + 4 * PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"{command[0]} did not end") from error
    if done.returncode:
        raise LoadError(f"{command[0]} failed with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def wrk(port: int, seconds: int, *, kept: bool) -> int:
    """Make requests for `seconds`; give how many were answered.

    They go over kept connections or over a new one each. wrk offers a session that it had before,
    so but for the first ones the handshakes are resumptions.
    """
    header = [] if kept else ["-H", "Connection: close"]
    said = _run(["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", *header, _url(port)], seconds)
    answered = re.search(r"(\d+) requests in", said)
    if "Non-2xx" in said or answered is None or answered[1] == "0":
        raise LoadError(f"wrk: {said.strip()}")
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said
    )
    if errors and any(int(number) for number in errors.groups()):
        raise LoadError(f"wrk: {errors[0]}")
    return int(answered[1])


def handshakes(port: int, seconds: int, *, tls_12: bool = False, at_once: int = 8) -> int:
    """Make connections with a full handshake and a request each; give how many there were.

    openssl s_time counts whole seconds of the clock, so it takes up to one more than `seconds`.
    """
    command = ["openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-www", "/"]
    command += ["-time", str(seconds), "-tls1_2" if tls_12 else "-tls1_3"]
    with ExitStack() as closing:
        running = [
            closing.enter_context(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )
            for _ in range(at_once)
        ]
        for each in running:
            closing.callback(each.kill)
        count = 0
        for process in running:
            try:
                said, _ = process.communicate(timeout=seconds + PATIENCE)
            except subprocess.TimeoutExpired as error:
                raise LoadError("openssl s_time did not end") from error
            total = re.search(r"(\d+) connections in \d+ real seconds", said)
            if process.returncode or total is None or total[1] == "0":
                raise LoadError(f"openssl s_time: {said[-300:]}")
            count += int(total[1])
    return count


@dataclass(slots=True)
class Pacing:
    """How long requests took, in milliseconds, in order; only of those sent after `since`."""

    since: float = 0.0
    """Seconds since the epoch."""
    times: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Give the time that so large a share is not above."""
        if not self.times:
            raise LoadError("no request was answered in the time that counts")
        return self.times[min(len(self.times) - 1, int(share * len(self.times)))]


@contextmanager
def paced(port: int, rate: int, seconds: int, directory: Path) -> Iterator[Pacing]:
    """Have h2load send `rate` requests a second in all, while the context lasts and to its end.

    The times are there then. A request that is late because the one before it on its connection
    was not answered is counted from when it was sent.
    """
    log = directory / f"h2load-{time.monotonic_ns()}"
    command = ["h2load", "--h1", f"-c{CONNECTIONS}", f"--rps={rate // CONNECTIONS}"]
    command += [f"-D{seconds}", f"--log-file={log}", _url(port)]
    pacing = Pacing()
    # Above the other load on its core: it measures.
    with subprocess.Popen(
        ["nice", "-n", "-5", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield pacing
            said, _ = process.communicate(timeout=seconds + 4 * PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise LoadError("h2load did not end") from error
        finally:
            process.kill()
    lines = [line.split() for line in log.read_text().splitlines()]
    if process.returncode or not lines or "0 failed, 0 errored, 0 timeout" not in said:
        raise LoadError(f"h2load: {said[-600:]}")
    if bad := {status for _, status, _ in lines} - {"200"}:
        raise LoadError(f"h2load: status {', '.join(bad)}")
    pacing.times = sorted(
        int(took) / 1000 for began, _, took in lines if int(began) / 1e6 >= pacing.since
    )


def download(port: int, size: int, streams: int) -> float:
    """Download `size` bytes over `streams` connections at once; give the seconds it took."""
    options = ["--range", f"0-{size // streams - 1}"]
    return _curl(_url(port, "/bulk"), streams, options, "size_download", size)


def upload(port: int, size: int, streams: int, directory: Path) -> float:
    """Upload `size` bytes over `streams` connections at once; give the seconds it took."""
    part = directory / f"part-{size // streams}"
    if not part.exists():
        with part.open("wb") as file:
            file.truncate(size // streams)
    options = ["-H", "Expect:", "-T", str(part)]
    return _curl(_url(port, "/sink/bulk"), streams, options, "size_upload", size)


def _curl(url: str, streams: int, options: list[str], counted: str, size: int) -> float:
    command = ["curl", "-sS", "--insecure", "--parallel", "--parallel-immediate"]
    command += ["--parallel-max", str(streams)]
    for number in range(streams):
        command += ["--next"] if number else []
        command += ["-sS", "--insecure", "--no-progress-meter", *options, "-o", "/dev/null"]
        command += ["-w", f"%{{http_code}} %{{{counted}}}\\n", url]
    began = time.monotonic()
    said = _run(command)
    elapsed = time.monotonic() - began
    moved = 0
    for line in said.splitlines():
        if match := re.fullmatch(r"20\d (\d+)", line.strip()):
            moved += int(match[1])
    if moved < size - streams:
        raise LoadError(f"curl moved {moved} of {size} bytes: {said[-300:]}")
    return elapsed
