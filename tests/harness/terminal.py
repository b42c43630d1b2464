"""A client program that is typed to, and whose output is waited for."""

from __future__ import annotations

import os
import select
import subprocess
import time
from typing import Self

from harness.homes import TIMEOUT


class Terminal:
    """A running program. On leaving, its input is closed, and it has to end by itself."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._output = b""

    def enter(self, line: str) -> None:
        """Type a line, as one write."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def expect(self, text: str) -> None:
        """Wait for a text in the output, and forget the output up to its end."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + TIMEOUT
        while text.encode() not in self._output:
            left = max(0.0, deadline - time.monotonic())
            ready = select.select([self._process.stdout], [], [], left)[0]
            data = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            assert data, f"no {text!r} in:\n{self._output.decode(errors='replace')}"
            self._output += data
        self._output = self._output.partition(text.encode())[2]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._process.communicate(timeout=TIMEOUT)
        finally:
            self._process.kill()
            self._process.communicate()
