"""Looking at processes from outside: titles, descriptors, deaths; and running the command."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import warnings
from pathlib import Path

from harness.homes import TIMEOUT


def run_handfast(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `handfast ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "handfast", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def title(pid: int) -> str:
    """Give what `ps` shows of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def descriptors(pid: int) -> int:
    """Count the open descriptors of a process; what is garbage already does not count in ours."""
    if pid == os.getpid():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it is for whoever has left it
            gc.collect()
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Watched:
    """Processes whose deaths can be waited for, whoever's children they are."""

    def __init__(self, *pids: int) -> None:
        self._left = {os.pidfd_open(pid): pid for pid in pids}

    def wait(self, timeout: float = TIMEOUT) -> None:
        """Wait until all have ended; AssertionError names those that have not."""
        poll = select.poll()
        for descriptor in self._left:
            poll.register(descriptor, select.POLLIN)
        while self._left:
            ended = poll.poll(timeout * 1000)
            assert ended, f"still running after {timeout} s: {sorted(self._left.values())}"
            for descriptor, _ in ended:
                poll.unregister(descriptor)
                del self._left[descriptor]
                os.close(descriptor)


def kill_and_wait(pid: int) -> None:
    """Send SIGKILL, and wait for the end."""
    watched = Watched(pid)
    os.kill(pid, signal.SIGKILL)
    watched.wait()
