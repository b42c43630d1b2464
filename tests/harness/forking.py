"""handfast started by a fork of the test's process, where starting Python anew takes seconds.

That is so in the guest (`harness.guest`): its page faults are slow, and an import is many of them.
"""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import traceback
from typing import Final

from handfast.cli import main, serve  # noqa: F401 - what `main` imports at its first use

_FIRST: Final = 3


class Forked:
    """`handfast ARGUMENTS`, in as much as the tests need of a subprocess.Popen."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.args = arguments
        self.returncode: int | None = None
        out, to_out = os.pipe()
        errors, to_errors = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _run(arguments, environment, to_out, to_errors)
        os.close(to_out)
        os.close(to_errors)
        self.stdout = open(out, "rb")  # noqa: PTH123, SIM115 - descriptors, closed by their user
        self.stderr = open(errors, "rb")  # noqa: PTH123, SIM115
        self._death = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._death], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._death)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            select.select([self._death], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(arguments: list[str], environment: dict[str, str], out: int, errors: int) -> None:
    """Be handfast, and never come back to the test."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(out, 1)
        os.dup2(errors, 2)
        os.closerange(_FIRST, max(out, errors) + 1024)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True)
        os.environ.update(environment)
        sys.argv = ["handfast", *arguments]
        code = main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - whoever reads the errors sees it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
