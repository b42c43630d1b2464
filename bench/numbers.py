"""The numbers that handfast's costs are compared with: `costs.json`, beside this module."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("costs.json")
TOLERANCE: Final = 0.10
"""How much more a count may be than its number, as a part of that."""
SLACK: Final = 0.1
"""How much more it may be in any case, for a small count that is a mean of many units."""
WRITE: Final = "python -m bench.costs --write"

Counts = dict[str, float]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Counts by name, and the versions of what they were counted with."""

    versions: dict[str, str]
    counts: Counts


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison says: `failures` fail the check, `hints` do not."""

    failures: tuple[str, ...]
    hints: tuple[str, ...]


def load(file: Path = FILE) -> Numbers:
    """Read the numbers; there are none where there is no file."""
    if not file.exists():
        return Numbers({}, {})
    read = json.loads(file.read_text())
    return Numbers(read["versions"], read["counts"])


def text_of(numbers: Numbers) -> str:
    """Give what the file is to have."""
    counts = {name: _shortest(count) for name, count in sorted(numbers.counts.items())}
    text = {"versions": numbers.versions, "counts": counts}
    return json.dumps(text, indent=2) + "\n"


def _shortest(count: float) -> float:
    """Give a count as it is to be read: whole when it is, else to a hundredth."""
    return int(count) if count == int(count) else round(count, 2)


def merged(old: Numbers, new: Numbers, missing: tuple[str, ...]) -> Numbers:
    """Take the new numbers, and keep the old ones of the parts that could not be counted."""
    kept = {name: count for name, count in old.counts.items() if name.startswith(missing)}
    return Numbers(old.versions | new.versions, new.counts | kept)


def compare(numbers: Numbers, found: Numbers, missing: tuple[str, ...] = ()) -> Verdict:
    """Judge what was found. `missing` has how the names begin that could not be counted here."""
    failures, hints = [], []
    for name, count in found.counts.items():
        number = numbers.counts.get(name)
        if number is None:
            failures.append(f"{name}: {count:g}, and there is no number to compare it with")
        elif count > max(number * (1 + TOLERANCE), number + SLACK):
            failures.append(f"{name}: {count:g} instead of {number:g}{_percent(count, number)}")
        elif count < min(number * (1 - TOLERANCE), number - SLACK):
            hints.append(f"{name}: only {count:g} instead of {number:g}{_percent(count, number)}")
    failures += [
        f"{name}: was not counted, but has a number"
        for name in numbers.counts
        if name not in found.counts and not name.startswith(missing)
    ]
    return Verdict(tuple(failures), tuple(hints))


def _percent(count: float, number: float) -> str:
    return f" ({(count - number) / number:+.0%})" if number else ""


def report(verdict: Verdict, numbers: Numbers, found: Numbers) -> str:
    """Tell the verdict, and what to do about it; empty when there is nothing to tell."""
    lines: list[str] = []
    if verdict.hints:
        lines += ["handfast costs less than its numbers say:", *_listed(verdict.hints)]
        lines += [f"Tighten them: {WRITE}", ""]
    if verdict.failures:
        lines += [f"handfast costs more than its numbers allow, which is {TOLERANCE:.0%} more:"]
        lines += [*_listed(verdict.failures), *_other_versions(numbers, found)]
        lines += [f"If that is meant, take the new numbers, and tell in the commit why: {WRITE}"]
    return "\n".join(lines).rstrip("\n")


def _listed(items: tuple[str, ...]) -> list[str]:
    return [f"  {item}" for item in items]


def _other_versions(numbers: Numbers, found: Numbers) -> list[str]:
    """Tell what else may be the reason."""
    return [
        f"The numbers were counted with {name} {version}, this with {found.versions[name]}."
        for name, version in numbers.versions.items()
        if found.versions.get(name, version) != version
    ]
