"""`python -m soak --minutes 10 --seed 1`: faults at random under load; 1 at the end of a bad run.

A run is made of rounds. In each some streams and passing clients are the load, a few faults happen
under it, often while somebody reloads all the time, and then everything must be as it was: who was
not excused was served, and processes, descriptors and memory are back at the baseline. Some rounds
end with SIGTERM, some with the death of the supervisor, and handfast is started anew.

With `--reloads N`, that many reloads with a hundred certificates come first.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Final

from harness.footprint import Footprint, back_at
from harness.instance import wait_for
from harness.load import Churn, Streams
from harness.processes import Watched
from soak.faults import TABLE, Round
from soak.site import ROOM, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

_STREAMS: Final = 6
_DRAIN_SHARE, _KILL_SHARE = 0.06, 0.03
_MIB: Final = 1 << 20
_EXPECTED_FAULTS: Final = ("a hand-over was refused", "the template cannot load its files again")


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Soak:
    """One run."""

    def __init__(self, site: Site, seed: int) -> None:
        self._site = site
        self._random = Random(seed)
        self.violations: list[str] = []
        self.faults: Counter[str] = Counter()
        self.rounds = self.served = self.reloads = 0
        self.largest: dict[str, int] = {}

    def run(self, seconds: float) -> None:
        """Do rounds for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.rounds += 1
            names: list[str] = []
            try:
                self._round(names)
            except Exception:  # noqa: BLE001 - it is what this looks for
                self._violated(names)

    def _violated(self, names: list[str]) -> None:
        """Keep what can be known of a violation, and begin anew."""
        trace = traceback.format_exc()
        self.violations.append(f"round {self.rounds}, {', '.join(names)}:\n{trace}")
        say(f"VIOLATION in {self.violations[-1]}")
        kept = Path(tempfile.mkdtemp(prefix="soak-"))
        kept.joinpath("log").write_text("\n".join(self._site.running.lines))
        say(f"the log of this round is in {kept}")
        self._site.clock.jump(0)
        (self._site.disk / "ballast").unlink(missing_ok=True)
        self._site.running.kill()
        self._site.start()

    def _round(self, names: list[str]) -> None:
        site, random = self._site, self._random
        with (
            Streams(site.port, site.context, _STREAMS) as streams,
            Churn(site.port, site.context) as churn,
        ):
            at = Round(site, random, streams, churn)
            with self._reloads_meanwhile(at) if random.random() < 0.4 else ExitStack():
                for fault in random.choices(TABLE, k=random.randrange(1, 5)):
                    names.append(fault.__name__)
                    say(f"round {self.rounds}: {fault.__name__}")
                    fault(at)
                    at.go_on()
                    self.faults[fault.__name__] += 1
            end = random.random()
            if end < _KILL_SHARE:
                names.append("the end of the supervisor")
                self._kill()
                churn.finish()
                wait_for(lambda: len(streams.broken) == _STREAMS, "every stream ends")
            elif end < _KILL_SHARE + _DRAIN_SHARE:
                names.append("the end in order")
                site.running.terminate()
                churn.finish()
                streams.finish()
                assert set(streams.broken) <= at.excused, streams.broken
                self._stopped()
            else:
                streams.finish()
                churn.finish()
                self._check(at)
        self.served += churn.good

    @contextmanager
    def _reloads_meanwhile(self, at: Round) -> Iterator[None]:
        """Reload again and again, whatever else happens."""
        finish, errors = threading.Event(), list[str]()

        def work() -> None:
            while not finish.wait(0.05):
                with self._site.reloading:
                    error = self._site.running.reload().error
                self.reloads += 1
                # The template that loads may be the one that is killed.
                if error and "died" not in error:
                    errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finish.set()
            thread.join(60)
        assert not thread.is_alive(), "a reload does not end"
        assert errors == []

    def _check(self, at: Round) -> None:
        running, site = self._site.running, self._site
        assert set(at.streams.broken) <= at.excused, at.streams.broken
        assert len(at.churn.failures) <= at.tolerated, at.churn.failures
        running.check_footprint(site.baseline, ROOM)
        for name, size in Footprint.of(running.pid).memory.items():
            self.largest[name] = max(size, self.largest.get(name, 0))
        unexpected = [
            each
            for each in running.events("system_error")
            if each["error_msg"] not in _EXPECTED_FAULTS
        ]
        assert unexpected == []
        dead = [
            each["worker_id"]
            for each in running.events("worker", worker_state="dead")
            if "error_msg" in each and each["worker_id"] != "template"
        ]
        assert at.deadly or dead == []
        site.tidy()

    def _kill(self) -> None:
        running = self._site.running
        watched = Watched(*(each.pid for each in Footprint.of(running.pid).processes.values()))
        running.process.send_signal(signal.SIGKILL)
        watched.wait()
        running.kill()
        self._site.start()

    def _stopped(self) -> None:
        running = self._site.running
        watched = Watched(*(each.pid for each in Footprint.of(running.pid).processes.values()))
        running.stop()
        watched.wait()
        self._site.start()

    def reload_many(self, count: int) -> None:
        """Reload so many times, and tell the memory of every process before and after."""
        running = self._site.running
        before = warm = running.footprint()
        began = time.monotonic()
        for number in range(count):
            if number == count // 10:
                warm = running.footprint()
            answer = running.reload()
            assert answer.error == "", answer
        seconds = time.monotonic() - began
        after = back_at(before, running.pid)
        say(f"{count} reloads in {seconds:.1f} s; KiB before, after a tenth, and at the end:")
        for name, size in before.memory.items():
            sizes = (size, warm.memory[name], after.memory[name])
            say(f"  {name:24}" + "".join(f"{each // 1024:8}" for each in sizes))
        self._site.tidy()

    def summary(self) -> None:
        """Say what was done, and what became of it."""
        say(f"{self.rounds} rounds, {self.served} clients, {self.reloads} reloads in between")
        say(", ".join(f"{name} {count}" for name, count in sorted(self.faults.items())))
        for name, size in sorted(self.largest.items()):
            began = self._site.baseline.memory.get(name, 0)
            say(f"  {name:24} {began / _MIB:6.1f} MiB at first, {size / _MIB:6.1f} at most")
        for each in self.violations:
            say(f"VIOLATION in {each}")
        say(f"{len(self.violations)} violations")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="soak", description="Faults at random, under load.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1 << 31))
    parser.add_argument("--reloads", type=int, default=0, help="reloads to do first")
    options = parser.parse_args()
    say(f"seed {options.seed}, {options.minutes:g} minutes")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        site = Site(Path(directory), stack).start()
        stack.callback(lambda: site.running.kill())  # noqa: PLW0108 - of the one that runs then
        soak = Soak(site, options.seed)
        if options.reloads:
            soak.reload_many(options.reloads)
        soak.run(options.minutes * 60)
        site.running.stop()
        soak.summary()
    return 1 if soak.violations else 0


if __name__ == "__main__":
    sys.exit(main())
