"""The stage: brings the actors on, hears what they say, and sees that all of them leave.

It holds no key and no secret while any of the actors is still to come: they are forked from it, and
would have inherited both.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from handfast.errors import HandfastError
from handfast.process.fork import fork
from line import Line, Message, Prompter, Report, Said, Try, pair

M = TypeVar("M", bound=Message)


class Stage:
    """Actors by name, and all that they have said. `pids` are known once they have said it."""

    def __init__(self, patience: float) -> None:
        self.pids: dict[str, int] = {}
        self.heard: list[tuple[str, Report]] = []
        self._prompters: dict[str, Prompter] = {}
        self._children: dict[int, int] = {}
        self._until = time.monotonic() + patience

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """End: whoever is still there has had their time. Their children die with them."""
        for pid, death in self._children.items():
            signal.pidfd_send_signal(death, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(death)
        for prompter in self._prompters.values():
            prompter.close()

    def enter(self, names: tuple[str, ...], main: Callable[..., int]) -> None:
        """Fork an actor, the first; it gets a line for each name, of which it may pass some on."""
        lines: dict[str, Line] = {}
        for name in names:
            self._prompters[name], lines[name] = pair()
        given = lines.values()
        pid = fork(names[0], lambda: main(*given), [each.fileno() for each in given])
        self._children[pid] = os.pidfd_open(pid)
        for each in given:
            each.close()

    def prepare(self, title: str, work: Callable[[], object]) -> None:
        """Have something done in a process of its own, so that nobody inherits what it knew."""
        pid = fork(title, lambda: int(not work()), [])
        if os.waitpid(pid, 0)[1]:
            raise HandfastError(f"the {title} failed")

    def wait_for(self, kind: type[M], *names: str) -> list[M]:
        """Wait until each of these has told something of a kind; give that, in the same order."""
        while True:
            found = {
                name: report.message
                for name, report in self.heard
                if name in names and isinstance(report.message, kind)
            }
            if len(found) == len(names):
                return [found[name] for name in names]
            self.hear(self._until - time.monotonic())

    def hear(self, patience: float | None = None) -> None:
        """Hear what comes next, at least one; raises HandfastError when that takes too long."""
        there = {prompter: name for name, prompter in self._prompters.items()}
        limit = None if patience is None else max(0, patience)
        ready = select.select(list(there), [], [], limit)[0]
        if not ready:
            raise HandfastError(f"waited too long for: {', '.join(there.values())}")
        for prompter in ready:
            name, report = there[prompter], prompter.hear()
            if report is None:
                self._leave(name, prompter)
            else:
                self.pids[name] = report.pid
                self.heard.append((name, report))

    def _leave(self, name: str, prompter: Prompter) -> None:
        del self._prompters[name]
        prompter.close()
        if not prompter.dismissed:
            raise HandfastError(f"the {name} left too early")

    def order(self, name: str, order: Try) -> None:
        """Have an actor do something."""
        self._prompters[name].order(order)

    def dismiss(self, *names: str) -> None:
        """Tell actors that their part is over."""
        for name in names:
            self._prompters[name].dismiss()

    def empty(self) -> None:
        """Wait until all have left, of their own accord and well."""
        while self._prompters:
            self.hear(self._until - time.monotonic())
        for pid in list(self._children):
            status = os.waitpid(pid, 0)[1]
            os.close(self._children.pop(pid))
            if status:
                raise HandfastError(f"process {pid} ended with {os.waitstatus_to_exitcode(status)}")

    def said(self) -> list[tuple[str, str]]:
        """Give who said what, in the order in which it was said."""
        told = sorted(self.heard, key=lambda each: each[1].at)
        return [(n, each.message.text) for n, each in told if isinstance(each.message, Said)]
