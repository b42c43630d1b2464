"""Measure handfast against nginx, hitch, HAProxy and stunnel on one core of this machine.

The systems run on one core, the clients and the backend on another. Measurements are interleaved,
A B C A B C, and the median of the rounds counts. Exit code 0 when everything was measured, whether
or not the targets are met.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench import load, measure, report, running
from bench.certificates import issue
from bench.figures import Results, Row
from bench.scenarios import (
    FULL,
    QUICK,
    SMOKE,
    AbsentError,
    Amount,
    Kind,
    Scenario,
    Stage,
    carrying,
    changing,
    flooding,
    growing,
    holding,
)
from bench.systems import DEFAULT, NGINX, REPOSITORY, SYSTEMS, System

RESULTS: Final = REPOSITORY / "bench" / "results"
SCENARIOS: Final = (
    *carrying.SCENARIOS,
    *flooding.SCENARIOS,
    *holding.SCENARIOS,
    *changing.SCENARIOS,
    *growing.SCENARIOS,
)
MEMORY: Final = next((path for path in ("/dev/shm",) if Path(path).is_dir()), None)  # noqa: S108
"""Where the files are: a disk is not to be measured."""
FAILURES: Final = (running.StartError, load.LoadError, measure.MeasureError)
AMOUNTS: Final = {"full": FULL, "quick": QUICK, "smoke": SMOKE}


def main() -> int:
    """Measure, print the table, write the JSON file."""
    options = _options()
    # An end by signal runs the clean-up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    chosen = [each for each in SCENARIOS if options.scenarios in each.name]
    try:
        results, failures = run(
            [SYSTEMS[name] for name in options.systems], chosen, AMOUNTS[options.amount]
        )
    except FAILURES as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"bench: {error}; `make bench` installs what is missing", file=sys.stderr)
        return 1
    for name, value in results.environment.items():
        print(f"{name}: {value}")
    print("\n" + report.table(results))
    path = options.output or RESULTS / time.strftime("%Y%m%dT%H%M%SZ.json", time.gmtime())
    results.save(path)
    print(f"\nevery figure: {path}")
    for failure in failures:
        print(f"bench: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--amount",
        choices=AMOUNTS,
        default="full",
        help="full: a quarter of an hour; quick: four minutes, less exact; smoke: only a test",
    )
    parser.add_argument(
        "--systems",
        type=lambda text: text.split(","),
        default=list(DEFAULT),
        help=f"which to measure, separated by commas (default: {','.join(DEFAULT)})",
    )
    parser.add_argument("--scenarios", default="", help="only those with this in their name")
    parser.add_argument("--output", type=Path, help="the file to write, not one by the time")
    options = parser.parse_args()
    if unknown := set(options.systems) - SYSTEMS.keys():
        parser.error(f"no such system: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    if not any(options.scenarios in each.name for each in SCENARIOS):
        names = "\n  ".join(each.name for each in SCENARIOS)
        parser.error(f"no scenario has {options.scenarios!r} in its name; there are\n  {names}")
    return options


class Run:
    """The rows of a run, as they grow."""

    def __init__(self, systems: list[System], site: running.Site, amount: Amount) -> None:
        self.systems = systems
        self.site = site
        self.amount = amount
        self.rows: dict[tuple[Kind, int | None, str], Row] = {}
        self.failures: list[str] = []

    def scenario(self, scenario: Scenario, standing: dict[str, running.Running]) -> None:
        """Measure all rounds of a scenario, in turn A B C A B C."""
        absent: dict[str, str] = {}
        rounds = self.amount.fresh_rounds if scenario.slow else self.amount.rounds
        began = time.monotonic()
        for _ in range(rounds):
            for system in self.systems:
                if system.name in absent:
                    continue
                stage = Stage(system, self.site, self.amount, standing.get(system.name))
                try:
                    for each in scenario.measure(stage):
                        self._row(each.kind, each.at, system.name).rounds.append(each.value)
                except AbsentError as error:
                    absent[system.name] = str(error)
                except FAILURES as error:
                    absent[system.name] = f"failed: {error}"
                    self.failures.append(f"{scenario.name}, {system.name}: {error}")
        for kind in scenario.kinds:
            sizes = dict.fromkeys(at for key, at, _ in self.rows if key == kind) or [None]
            for at in list(sizes):
                for name, why in absent.items():
                    self._row(kind, at, name, why)
        seconds = time.monotonic() - began
        print(f"bench: {scenario.name} ({seconds:.0f} s)", file=sys.stderr, flush=True)

    def _row(self, kind: Kind, at: int | None, system: str, why: str = "") -> Row:
        row = Row(kind.scenario, system, kind.figure, kind.unit, kind.better, at, why=why)
        return self.rows.setdefault((kind, at, system), row)


def run(
    systems: list[System], scenarios: list[Scenario], amount: Amount
) -> tuple[Results, list[str]]:
    """Measure everything; give that, and what failed. Raises FAILURES when nothing can be measured.

    A scenario that fails for a system has no more rounds of it, and its figures are left out.
    """
    proxy_core, load_core = _two_cores()
    descriptors = _all_descriptors()
    os.sched_setaffinity(0, {load_core})
    versions = {system.name: system.version() for system in systems}
    started = time.monotonic()
    with ExitStack() as closing:
        directory = Path(
            closing.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=MEMORY))
        )
        directory.chmod(0o755)  # for those who leave root behind
        target = closing.enter_context(running.target(directory, load_core, descriptors))
        certificates = (issue(directory), issue(directory, "rsa", rsa_key=True))
        site = running.Site(directory, *certificates, target, proxy_core, descriptors)
        measured = Run(systems, site, amount)
        with ExitStack() as serving:
            standing: dict[str, running.Running] = {}
            if any(not scenario.fresh for scenario in scenarios):
                for system in systems:
                    standing[system.name] = serving.enter_context(running.start(system, site))
                _warm_up(standing)
            for scenario in scenarios:
                if not scenario.fresh:
                    measured.scenario(scenario, standing)
        for scenario in scenarios:
            if scenario.fresh:
                measured.scenario(scenario, {})
    conditions = _environment(systems, versions)
    conditions["seconds"] = round(time.monotonic() - started)
    # Other work on the machine shows here: about 2 is the benchmark itself.
    conditions["load average at the end"] = os.getloadavg()[0]
    return Results(conditions, list(measured.rows.values())), measured.failures


def _warm_up(standing: dict[str, running.Running]) -> None:
    for proxy in standing.values():
        load.connections(proxy.ecdsa, 200)
        with load.kept(proxy.ecdsa, 16) as held:
            load.requests(held, 1000, proxy.ecdsa.protocol)


def _two_cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise measure.MeasureError("only one core; the load needs a second one")
    return cores[0], cores[1]


def _all_descriptors() -> int:
    """Raise the limit on descriptors as far as it can be, which the systems inherit; give it."""
    wanted = 40_000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        except (ValueError, OSError):
            wanted = most  # with less, there are fewer connections, which the figures tell
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, most)))
    return wanted


def _environment(systems: list[System], versions: dict[str, str]) -> dict[str, Any]:
    """Give what the figures depend on."""
    generators = {
        "wrk": ["wrk", "-v"],
        "h2load": ["h2load", "--version"],
        "openssl": ["openssl", "version"],
        "curl": ["curl", "--version"],
        "backend": [NGINX, "-v"],
    }
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "revision": _first_line(["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "key exchange": _key_exchange(),
        "python": f"{platform.python_version()}, {ssl.OPENSSL_VERSION}",
        **{f"{system.name}": versions[system.name] for system in systems},
        **{f"{system.name}, tuned": system.tuning for system in systems},
        **{name: _first_line(command) for name, command in generators.items()},
    }


def _key_exchange() -> str:
    if ssl.OPENSSL_VERSION_INFO < (3, 5):
        return "X25519 for all: the clients' OpenSSL has no ML-KEM, but where a scenario says so"
    return "each system's choice: the clients' OpenSSL offers ML-KEM, so they may differ"


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
