"""Measure handfast against stunnel on one core of this machine: `python -m bench [--quick]`.

The systems run on one core, the clients and the backend on another. Measurements are interleaved,
A B A B, and the median of the rounds counts. Both systems run throughout; the idle one uses no
CPU time. Exit code 0 when everything was measured, whether or not the targets are met.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench import load, measure, report, scenarios, systems

RESULTS: Final = systems.REPOSITORY / "bench" / "results"


def main() -> int:
    """Measure, print the table, write the JSON file."""
    options = _options()
    # An end by signal runs the clean-up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        run(options.systems, scenarios.QUICK if options.quick else scenarios.FULL)
    except (systems.StartError, load.LoadError, measure.MeasureError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"bench: {error}; install stunnel4, openssl and util-linux", file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less than a minute, less exact")
    parser.add_argument(
        "--systems",
        type=lambda text: text.split(","),
        default=list(systems.DEFAULT),
        help=f"which to measure, separated by commas (default: {','.join(systems.DEFAULT)})",
    )
    options = parser.parse_args()
    if unknown := set(options.systems) - systems.SYSTEMS.keys():
        parser.error(
            f"no such system: {', '.join(unknown)}; there are {', '.join(systems.SYSTEMS)}"
        )
    return options


def run(names: list[str], amount: scenarios.Amount) -> None:
    """Measure everything; raises what each part raises."""
    proxy_core, load_core = _two_cores()
    _allow_descriptors(amount.idle)
    os.sched_setaffinity(0, {load_core})
    chosen = [systems.SYSTEMS[name] for name in names]
    versions = {system.name: system.version() for system in chosen}
    started = time.monotonic()
    with ExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        port = closing.enter_context(systems.backend(load_core))
        site = systems.Site(directory, *systems.certificate(directory), port, proxy_core)
        rows, suites = _cpu_rows(chosen, site, amount)
        rows += _idle_rows(chosen, site, amount)
    conditions = report.environment(versions, suites, _revision())
    conditions["seconds"] = round(time.monotonic() - started)
    # Other work on the machine shows here: about 2 is the benchmark itself.
    conditions["load average at the end"] = os.getloadavg()[0]
    for name, value in conditions.items():
        print(f"{name}: {value}")
    print(f"\nMedian of the rounds (least-most); core {proxy_core} for the system alone\n")
    print(report.table(rows, names))
    path = RESULTS / time.strftime("%Y%m%dT%H%M%SZ.json", time.gmtime())
    report.write(path, conditions, rows)
    print(f"\nevery figure: {path.relative_to(systems.REPOSITORY)}")


def _cpu_rows(
    chosen: list[systems.System], site: systems.Site, amount: scenarios.Amount
) -> tuple[list[report.Row], dict[str, str]]:
    rows = [report.Row(each.name, each.unit, each.target) for each in scenarios.CPU_SCENARIOS]
    with ExitStack() as closing:
        proxies = [closing.enter_context(systems.running(system, site)) for system in chosen]
        for scenario in scenarios.CPU_SCENARIOS:
            for proxy in proxies:
                scenario.measure(proxy, scenarios.WARM_UP)
        for number in range(amount.rounds):
            for scenario, row in zip(scenarios.CPU_SCENARIOS, rows, strict=True):
                for proxy in proxies:
                    figure = scenario.measure(proxy, amount)
                    row.figures.setdefault(proxy.name, []).append(figure.cost)
                    row.busy.setdefault(proxy.name, []).append(figure.busy)
            _progress(f"round {number + 1} of {amount.rounds}")
        return rows, {proxy.name: proxy.suite for proxy in proxies}


def _idle_rows(
    chosen: list[systems.System], site: systems.Site, amount: scenarios.Amount
) -> list[report.Row]:
    name = f"idle connection of {amount.idle}"
    pss = report.Row(name, "KB", scenarios.IDLE_TARGET, absolute=True)
    private = report.Row(f"{name}, private", "KB", None)
    for number in range(amount.idle_rounds):
        for system in chosen:
            figure = scenarios.idle(system, site, amount)
            pss.figures.setdefault(system.name, []).append(figure.pss)
            private.figures.setdefault(system.name, []).append(figure.private)
        _progress(f"idle round {number + 1} of {amount.idle_rounds}")
    return [pss, private]


def _progress(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _two_cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise measure.MeasureError("only one core; the load needs a second one")
    return cores[0], cores[1]


def _allow_descriptors(connections: int) -> None:
    """Raise the soft limit on descriptors, which the systems inherit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 3 * connections + 200
    if most != resource.RLIM_INFINITY and most < needed:
        raise measure.MeasureError(f"at most {most} descriptors; `ulimit -Hn {needed}` as root")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _revision() -> str:
    command = ["git", "-C", str(systems.REPOSITORY), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
