"""The results: a table for the terminal, and a JSON file with every single figure."""

from __future__ import annotations

import json
import platform
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

BASELINE: Final = "stunnel"
SUBJECT: Final = "handfast"


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one scenario, by system, in the order of the rounds.

    `target` is a ratio to the baseline, or a figure in `unit` if it is `absolute`; None for a
    row that is only shown.
    """

    name: str
    unit: str
    target: float | None
    absolute: bool = False
    figures: dict[str, list[float]] = field(default_factory=dict)
    busy: dict[str, list[float]] = field(default_factory=dict)
    """The share of the time that the core worked for the system."""

    def ratio(self) -> float | None:
        """Give the ratio of the medians, subject to baseline."""
        if not {BASELINE, SUBJECT} <= self.figures.keys():
            return None
        return median(self.figures[SUBJECT]) / median(self.figures[BASELINE])

    def met(self) -> bool | None:
        """Tell whether the target is met; None without a target or without its figures."""
        got = self.ratio()
        if self.absolute:
            got = median(self.figures[SUBJECT]) if SUBJECT in self.figures else None
        return None if got is None or self.target is None else got <= self.target

    def verdict(self) -> str:
        """Say the target and whether it is met."""
        if self.target is None:
            return ""
        words = {True: "met", False: "NOT MET", None: "not measured"}
        goal = f"{self.target:g} {self.unit}" if self.absolute else f"{self.target:.2f}"
        return f"<= {goal} {words[self.met()]}"


def environment(versions: dict[str, str], suites: dict[str, str], revision: str) -> dict[str, Any]:
    """Give what the figures depend on."""
    return {
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "client": f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}",
        "key exchange": _key_exchange(),
        "suites": suites,
        "revision": revision,
        **versions,
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _key_exchange() -> str:
    if ssl.OPENSSL_VERSION_INFO < (3, 5):
        return "X25519 for all: the client's OpenSSL has no ML-KEM"
    return "each system's choice: the client's OpenSSL offers ML-KEM, so they may differ"


def table(rows: list[Row], systems: list[str]) -> str:
    """Lay out medians with their ranges, ratios and targets."""
    head = ["", *systems, "ratio", "target"]
    lines = [head]
    for row in rows:
        ratio = row.ratio()
        cells = [_cell(row.figures[system], row.busy.get(system)) for system in systems]
        shown = "" if ratio is None else f"{ratio:.2f}"
        lines.append([f"{row.name}, {row.unit}", *cells, shown, row.verdict()])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(figures: list[float], busy: list[float] | None) -> str:
    digits = 0 if median(figures) >= 100 else 1
    text = f"{median(figures):.{digits}f} ({min(figures):.{digits}f}-{max(figures):.{digits}f})"
    return text + (f" {median(busy):.0%} busy" if busy else "")


def write(path: Path, conditions: dict[str, Any], rows: list[Row]) -> None:
    """Write everything to `path` as JSON."""
    results = [
        {
            "name": row.name,
            "unit": row.unit,
            "target": row.target,
            "target is": "in the unit" if row.absolute else f"a ratio to {BASELINE}",
            "met": row.met(),
            "ratio": row.ratio(),
            "median": {system: median(figures) for system, figures in row.figures.items()},
            "figures": row.figures,
            "busy": row.busy,
        }
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": conditions, "results": results}, indent=2) + "\n")
