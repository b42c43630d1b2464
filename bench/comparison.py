"""What changed between two runs, by handfast's ratios to its peers, since machines may differ.

The rounds of a run alternate between the systems, so round three of handfast and round three of a
peer saw the same machine in the same mood: the ratio is that of the medians, and its range that of
the rounds one by one. Where the ranges of two runs overlap, the change is within noise; so is one
below `SLIGHT`, whatever the ranges are. Without a ratio to any peer in both runs - nobody else was
measured, or did nothing wrong - handfast's own figure counts, which needs the same machine.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from enum import Enum
from math import inf, isnan
from pathlib import Path
from statistics import median
from typing import Final

from bench.figures import SUBJECT, FiguresError, Results, Row, load
from bench.report import ALIKE, BETTER, WORSE, Key, digits, named

SLIGHT: Final = 0.01
"""The least change that is worth a word; a single round has no range that could tell."""
ITSELF: Final = "itself"
UNJUDGED: Final = "busy"
"""A condition of the measurement, in which nobody is better."""


class Verdict(Enum):
    """What a change means for handfast."""

    WORSE = "worse"
    BETTER = "better"
    NOISE = "within noise"


MARKS: Final = {Verdict.WORSE: WORSE, Verdict.BETTER: BETTER, Verdict.NOISE: ALIKE}
LEGEND: Final = (
    "handfast's figure by the peer's, before -> after, and the change. ! worse, + better,\n"
    "~ within noise: the ranges over the rounds overlap, or it is below 1 %."
)


@dataclass(frozen=True, slots=True)
class Span:
    """A ratio, or a figure, with its range over the rounds."""

    middle: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of handfast beside `peer`, or by itself, in the run before and in that after."""

    peer: str
    higher_is_better: bool
    before: Span
    after: Span

    @property
    def share(self) -> float:
        """The change as a share of what was before: 0.1 for a tenth more."""
        if self.before.middle:
            return (self.after.middle - self.before.middle) / abs(self.before.middle)
        return inf if self.after.middle > 0 else -inf if self.after.middle < 0 else 0.0

    @property
    def harm(self) -> float:
        """How much worse it became, as a share; negative for better."""
        return -self.share if self.higher_is_better else self.share

    @property
    def verdict(self) -> Verdict:
        """Judge, with the ranges in mind."""
        overlap = self.before.least <= self.after.most and self.after.least <= self.before.most
        if overlap or abs(self.share) < SLIGHT:
            return Verdict.NOISE
        return Verdict.WORSE if self.harm > 0 else Verdict.BETTER


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its changes beside each peer that both runs have."""

    key: Key
    changes: list[Change]

    @property
    def verdict(self) -> Verdict:
        """Judge: what is worse beside one peer is worse."""
        found = {change.verdict for change in self.changes}
        return next(verdict for verdict in Verdict if verdict in found)

    @property
    def harm(self) -> float:
        """The largest harm among the changes that the verdict comes from."""
        return max(
            (change.harm for change in self.changes if change.verdict is self.verdict), key=abs
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures, the most important first, and what only one of the runs has."""

    figures: list[Figure]
    only_before: list[tuple[Key, str]]
    only_after: list[tuple[Key, str]]

    def worst(self) -> float:
        """Give the largest harm outside the noise, as a share; 0 without any."""
        return max(
            (figure.harm for figure in self.figures if figure.verdict is Verdict.WORSE), default=0.0
        )


def compare(before: Results, after: Results) -> Comparison:
    """Compare two runs."""
    old, new = _measured(before), _measured(after)
    keys = dict.fromkeys(key for key, system in old if (key, system) in new)
    figures = [
        Figure(key, changes)
        for key in keys
        if key[1] != UNJUDGED and (changes := _changes(before, after, key))
    ]
    order = list(Verdict)
    figures.sort(key=lambda figure: (order.index(figure.verdict), -abs(figure.harm)))
    return Comparison(
        figures,
        [each for each in old if each not in new],
        [each for each in new if each not in old],
    )


def _measured(results: Results) -> dict[tuple[Key, str], Row]:
    return {(row.key, row.system): row for row in results.rows if row.rounds}


def _changes(before: Results, after: Results, key: Key) -> list[Change]:
    ours = after.row(key, SUBJECT)
    if ours is None:
        return []
    higher = ours.better == "higher"
    changes = []
    for peer in before.systems():
        old, new = _ratio(before, key, peer), _ratio(after, key, peer)
        if peer != SUBJECT and old and new:
            changes.append(Change(peer, higher, old, new))
    old, new = _itself(before, key), _itself(after, key)
    if not changes and old and new:
        changes.append(Change(ITSELF, higher, old, new))
    return changes


def _ratio(results: Results, key: Key, peer: str) -> Span | None:
    middle = results.ratio(key, peer)
    ours, theirs = results.row(key, SUBJECT), results.row(key, peer)
    if middle is None or ours is None or theirs is None or not all(theirs.rounds):
        return None
    if len(ours.rounds) == len(theirs.rounds):
        each = [a / b for a, b in zip(ours.rounds, theirs.rounds, strict=True)]
    else:
        each = [a / b for a in ours.rounds for b in theirs.rounds]
    return Span(middle, min(middle, *each), max(middle, *each))


def _itself(results: Results, key: Key) -> Span | None:
    row = results.row(key, SUBJECT)
    if row is None or not row.rounds:
        return None
    return Span(median(row.rounds), min(row.rounds), max(row.rounds))


def text(comparison: Comparison, before: Results, after: Results) -> str:
    """Lay a comparison out for a terminal."""
    parts = [_conditions(before, after)]
    peers = dict.fromkeys(each.peer for figure in comparison.figures for each in figure.changes)
    rows = [["handfast beside", *peers]]
    for verdict in Verdict:
        figures = [each for each in comparison.figures if each.verdict is verdict]
        if figures:
            rows += [[], [f"{verdict.value}: {len(figures)}"]]
            rows += [_line(figure, list(peers)) for figure in figures]
    if comparison.figures:
        parts += [_table(rows), LEGEND]
    for name, missing in (("before", comparison.only_before), ("after", comparison.only_after)):
        found: dict[Key, list[str]] = {}
        for key, system in missing:
            found.setdefault(key, []).append(system)
        lines = [f"  {named(key)}: {', '.join(systems)}" for key, systems in found.items()]
        parts.append("\n".join([f"only {name}: {len(missing)}", *lines]) if lines else "")
    return "\n\n".join(part for part in parts if part) or "nothing to compare"


def _line(figure: Figure, peers: list[str]) -> list[str]:
    cells = {change.peer: _cell(change) for change in figure.changes}
    return [f"  {named(figure.key)}", *(cells.get(peer, "-") for peer in peers)]


def _cell(change: Change) -> str:
    middles = change.before.middle, change.after.middle
    places = min(3, max(digits(middle) if middle else 0 for middle in middles))
    share = "from 0" if abs(change.share) == inf else f"{round(100 * change.share):+d}%"
    mark = MARKS[change.verdict]
    return f"{middles[0]:.{places}f} -> {middles[1]:.{places}f} {share:>4} {mark}"


def _table(rows: list[list[str]]) -> str:
    columns = range(len(rows[0]))
    widths = [
        max(len(row[n]) for row in rows if len(row) in {len(rows[0]), n + 1}) for n in columns
    ]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _conditions(before: Results, after: Results) -> str:
    """Tell which conditions differ."""
    lines = []
    for name in dict.fromkeys([*before.environment, *after.environment]):
        old, new = before.environment.get(name, "-"), after.environment.get(name, "-")
        if old != new:
            lines.append(f"  {name}: {old} -> {new}")
    return "\n".join(["conditions that differ", *lines]) if lines else ""


def main(arguments: list[str] | None = None) -> int:
    """Compare two files; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench/compare",
        description="Show what changed between two runs, by handfast's ratios to its peers.",
        epilog="Exit codes: 0 done, 1 worse than --fail-above allows, 2 wrong usage or file.",
    )
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument(
        "--fail-above",
        type=_percent,
        metavar="PERCENT",
        help="exit with 1 if a figure became worse by more, outside the noise",
    )
    options = parser.parse_args(arguments)
    try:
        before, after = load(options.before), load(options.after)
    except (FiguresError, OSError) as error:
        print(f"bench/compare: {error}", file=sys.stderr)
        return 2
    comparison = compare(before, after)
    print(text(comparison, before, after))
    worst = 100 * comparison.worst()
    if options.fail_above is not None and worst > options.fail_above:
        print(
            f"bench/compare: worse by {worst:.1f} %, more than {options.fail_above:g} %",
            file=sys.stderr,
        )
        return 1
    return 0


def _percent(word: str) -> float:
    number = float(word)
    if isnan(number) or number < 0:
        raise ValueError(word)
    return number
