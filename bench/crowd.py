"""Clients that go on while something is done to the system: some stay, some come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from bench.load import Client, Held, LoadError

PAUSE: Final = 0.02
"""Seconds between two requests of a connection that stays, and two new ones of a client."""


@dataclass(slots=True)
class Crowd:
    """What the clients saw."""

    to: Client
    staying: list[Held]
    came: int = 0
    failed: list[str] = field(default_factory=list)
    """Why new connections were not served."""
    disturbed: list[str] = field(default_factory=list)
    """Why connections that stay could not go on."""
    longest: float = 0.0
    """Seconds that the longest request took on a connection that stays."""
    over: threading.Event = field(default_factory=threading.Event)

    def stay(self) -> None:
        """Make requests on those that stay, one after the other."""
        while not self.over.wait(PAUSE):
            for connection in list(self.staying):
                began = time.monotonic()
                try:
                    self.to.exchange(connection)
                except (OSError, LoadError) as error:
                    self.staying.remove(connection)
                    self.disturbed.append(str(error))
                self.longest = max(self.longest, time.monotonic() - began)

    def come_and_go(self) -> None:
        """Connect, make a request and close."""
        while not self.over.wait(PAUSE):
            try:
                with self.to.connect() as connection:
                    self.to.exchange(connection)
                self.came += 1
            except (OSError, LoadError) as error:
                self.failed.append(str(error))


@contextmanager
def crowd(to: Client, staying: list[Held], clients: int = 4) -> Iterator[Crowd]:
    """Keep clients busy; on the way out they end."""
    result = Crowd(to, staying)
    threads = [threading.Thread(target=result.stay)]
    threads += [threading.Thread(target=result.come_and_go) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield result
    finally:
        result.over.set()
        for thread in threads:
            thread.join()
