"""A real handfast that logs to a file: it goes on logging while the test looks elsewhere."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Final

from handfast.process.commands import Answer, Request, ask
from harness.footprint import ROOM, Footprint, back_at, settled
from harness.instance import Instance, wait_for
from harness.pki import Identity

_LOOK_AGAIN: Final = 0.01
UNMEASURED: Final = ("env", "-u", "COVERAGE_PROCESS_CONFIG")
"""A wrapper for what coverage.py would change: measuring takes memory, and a second at each end."""


class Recorded(Instance):
    """`handfast serve` with `logfile:` and `control:` of its own, in `directory`.

    `yaml` is the configuration without those two.
    """

    def __init__(
        self,
        directory: Path,
        yaml: str,
        *,
        environment: dict[str, str] | None = None,
        module: str = "handfast",
        wrapper: tuple[str, ...] = (),
    ) -> None:
        self.log = directory / "handfast.log"
        self.control = directory / "control.sock"
        config = directory / "handfast.yaml"
        config.write_text(f"logfile: {self.log}\ncontrol: {self.control}\n{yaml}")
        self.log.unlink(missing_ok=True)
        self.log.touch()
        self._file = self.log.open("rb")
        super().__init__(config, environment, module=module, wrapper=wrapper)

    def _pump(self, timeout: float) -> bool:
        alive = self.process.poll() is None
        data = self._file.read()
        if not data:
            select.select([], [], [], min(timeout, _LOOK_AGAIN))
            return alive
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += [line.decode() for line in lines]
        return True

    @property
    def lines(self) -> list[str]:
        """Every line of the log so far."""
        while not self._is_read():
            self._pump(0)
        return self._lines

    def _is_read(self) -> bool:
        return self._file.closed or self._file.tell() >= os.fstat(self._file.fileno()).st_size

    def _close(self) -> None:
        super()._close()
        self._file.close()

    @property
    def pid(self) -> int:
        """The supervisor."""
        return self.process.pid

    def footprint(self) -> Footprint:
        """What it occupies, once it is at rest."""
        return settled(self.pid)

    def check_footprint(self, baseline: Footprint, room: int = ROOM) -> None:
        """Check that it occupies what it did, as soon as it is at rest."""
        back_at(baseline, self.pid, room)

    def role(self, name: str) -> int:
        """The process with this title."""
        return Footprint.of(self.pid).pid(name)

    def reload(self) -> Answer:
        """Reload, as the command does, and give the answer."""
        return ask(self.control, Request("reload"))

    def reopen_log(self) -> None:
        """Have the log, which was moved away, opened again, and wait for it."""
        self.process.send_signal(signal.SIGUSR1)
        wait_for(self.log.exists, "the log is open again")

    def follow(self) -> None:
        """Read the log that is there now, after what is left of the one that was moved away."""
        while not self._is_read():
            self._pump(0)
        self._file.close()
        self._file = self.log.open("rb")

    def forget(self) -> None:
        """Forget the lines so far."""
        del self.lines[:]
        self._parsed.clear()

    def terminate(self) -> None:
        """Send what tells it to drain and end."""
        self.process.send_signal(signal.SIGTERM)

    def owner(self, port: int) -> str:
        """The relay that carries the connection from this port of the client's."""
        told = self.wait("proxy", subevent="client_connect", client_port=str(port))
        return told["worker_id"]


def configuration(
    target: str, chain: Path, key: Path, *, nworkers: int = 2, extra: str = "", listener: str = ""
) -> str:
    """Write a configuration with one listener."""
    return (
        f"nworkers: {nworkers}\n{extra}\n"
        f"listeners:\n  - listen: 127.0.0.1:0\n    target: {target}\n"
        f"    certificates:\n      - {{chain: {chain}, key: {key}}}\n{listener}"
    )


def certificates_yaml(identities: list[Identity], directory: Path) -> str:
    """Write identities to files, and give the lines of `certificates` that name them."""
    lines = []
    for number, identity in enumerate(identities):
        chain, key = identity.write(directory, f"server-{number}")
        lines.append(f"      - {{chain: {chain}, key: {key}}}\n")
    return "".join(lines)
