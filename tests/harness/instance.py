"""A real handfast, started as a user starts it, and watched by its log."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.homes import IN_GUEST, TIMEOUT

if TYPE_CHECKING or IN_GUEST:
    from harness.forking import Forked

_FIELD = re.compile(r'([^\s="]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s"]*))')
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)")
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r"}


def parse_line(line: str) -> dict[str, str]:
    """Read one line of logfmt."""

    def plain(match: re.Match[str]) -> str:
        code = match.group(1)
        if len(code) > 1:
            return chr(int(code[1:], 16))
        return _SIMPLE.get(code, code)

    found = {}
    for key, quoted, bare in _FIELD.findall(line):
        found[key] = _ESCAPE.sub(plain, quoted) if quoted else bare
    return found


def wait_for(condition: Callable[[], Any], what: str, timeout: float = TIMEOUT) -> Any:
    """Poll until the condition is true; for what tells of its change in no better way."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        select.select([], [], [], 0.01)
    return value


class Instance:
    """`handfast serve -c FILE`, in the foreground, its log read from standard output.

    `port(0)` is the port of the first listener (give it `listen: 127.0.0.1:0`). `arguments` take
    the place of `-c FILE`, and `module` that of handfast; `wrapper` is a
    command that starts it in its own place, as prlimit(1) does. `python` is the interpreter of
    another installation.
    """

    def __init__(
        self,
        config: Path,
        environment: dict[str, str] | None = None,
        arguments: tuple[str, ...] | None = None,
        module: str = "handfast",
        wrapper: tuple[str, ...] = (),
        python: str = sys.executable,
    ) -> None:
        self.config = config
        self._lines: list[str] = []
        self._parsed: list[dict[str, str]] = []
        self._rest = b""
        words = ["serve", *(arguments or ("-c", str(config)))]
        self.process: subprocess.Popen[bytes] | Forked
        if IN_GUEST and not wrapper and module == "handfast" and python == sys.executable:
            self.process = Forked(words, environment or {})
        else:
            self.process = subprocess.Popen(
                [*wrapper, python, "-P", "-m", module, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    def __enter__(self) -> Self:
        try:
            self.wait("listening")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _pump(self, timeout: float) -> bool:
        """Read what the log has; False at its end."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        if not select.select([descriptor], [], [], timeout)[0]:
            return True
        try:
            data = os.read(descriptor, 1 << 20)
        except BlockingIOError:
            return True
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += [line.decode() for line in lines]
        return bool(data)

    @property
    def lines(self) -> list[str]:
        """Every line of the log so far."""
        stream = self.process.stdout
        assert stream is not None
        while not stream.closed and select.select([stream], [], [], 0)[0] and self._pump(0):
            pass
        return self._lines

    def events(self, event: str = "", **fields: str) -> list[dict[str, str]]:
        """The events so far that have this name and these fields."""
        lines = self.lines
        self._parsed += map(parse_line, lines[len(self._parsed) :])
        return [
            each
            for each in self._parsed
            if (not event or each.get("event") == event)
            and all(each.get(name) == value for name, value in fields.items())
        ]

    def wait(self, event: str, count: int = 1, **fields: str) -> dict[str, str]:
        """Wait for the event (for `count` of them), and give the last."""
        deadline = time.monotonic() + TIMEOUT
        while len(found := self.events(event, **fields)) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not self._pump(left):
                raise AssertionError(f"no {event} {fields}; the log:\n" + "\n".join(self._lines)
                                     + "\n" + self._errors())  # fmt: skip
        return found[-1]

    def _errors(self) -> str:
        if self.process.poll() is None or self.process.stderr is None:
            return ""
        return self.process.stderr.read().decode()

    def port(self, number: int = 0) -> int:
        """The port of a listener, in the order of the configuration."""
        self.wait("listening", number + 1)
        return int(self.events("listening")[number]["listen_port"])

    def status(self) -> Any:
        """What `handfast status --json` prints."""
        done = self.command("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def command(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `handfast NAME -c FILE ARGUMENTS`."""
        return subprocess.run(
            [sys.executable, "-m", "handfast", name, "-c", str(self.config), *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    def pids(self, prefix: str = "") -> dict[str, int]:
        """The processes by name (`relay-1`), as `status` tells them."""
        processes = self.status()["processes"]
        return {each["name"]: each["pid"] for each in processes if each["name"].startswith(prefix)}

    def stop(self) -> None:
        """End it in order, once, and check that it ends well and leaves nothing behind."""
        if self.process.stdout is None or self.process.stdout.closed:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            while self._pump(TIMEOUT):
                pass
        code = self.process.wait(TIMEOUT)
        errors = self._errors()
        self._close()
        assert code == 0, errors
        assert "Traceback" not in errors, errors

    def kill(self) -> None:
        """End it at once; its children die with it."""
        self.process.kill()
        self.process.wait(TIMEOUT)
        self._close()

    def _close(self) -> None:
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
