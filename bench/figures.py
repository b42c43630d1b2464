"""What a run measured: rows of figures with the conditions they hold for, and their JSON file.

The file's schema is stable: `{"schema": 1, "environment": {...}, "rows": [...]}`, and each row has
the keys of `Row`, with the figures of the rounds and their median, min and max.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal, get_args

SCHEMA: Final = 1
SUBJECT: Final = "handfast"

Better = Literal["lower", "higher"]


class FiguresError(Exception):
    """A file does not hold results, or results that this program can read."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one system, in the order of the rounds.

    `scenario` and `figure` are the words that a reader sees: "new connection, ECDSA, full", "CPU".
    `at` is the size that a scenario was measured at, where there are several: 3000 connections, 32
    streams. Without `rounds` there is no figure, and `why` says why not.
    """

    scenario: str
    system: str
    figure: str
    unit: str
    better: Better = "lower"
    at: int | None = None
    rounds: list[float] = field(default_factory=list)
    why: str = ""

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What rows of different systems have in common."""
        return self.scenario, self.figure, self.at

    @property
    def median(self) -> float | None:
        """The median of the rounds; None without a figure."""
        return median(self.rounds) if self.rounds else None

    def as_json(self) -> dict[str, Any]:
        """Give the row as the file has it."""
        return {
            "scenario": self.scenario,
            "system": self.system,
            "figure": self.figure,
            "unit": self.unit,
            "better": self.better,
            "at": self.at,
            "median": self.median,
            "min": min(self.rounds, default=None),
            "max": max(self.rounds, default=None),
            "rounds": self.rounds,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that one run measured."""

    environment: dict[str, Any]
    rows: list[Row]

    def keys(self) -> list[tuple[str, str, int | None]]:
        """Give what was measured, in the order of the run."""
        return list(dict.fromkeys(row.key for row in self.rows))

    def systems(self) -> list[str]:
        """Give who was measured, in the order of the run."""
        return list(dict.fromkeys(row.system for row in self.rows))

    def row(self, key: tuple[str, str, int | None], system: str) -> Row | None:
        """Find a row."""
        return next((row for row in self.rows if row.key == key and row.system == system), None)

    def ratio(self, key: tuple[str, str, int | None], peer: str) -> float | None:
        """Give handfast's median by that of a peer; None where one of them has no figure, or 0."""
        subject, other = self.row(key, SUBJECT), self.row(key, peer)
        if subject is None or other is None or subject.median is None or not other.median:
            return None
        return subject.median / other.median

    def save(self, path: Path) -> None:
        """Write the file."""
        document = {
            "schema": SCHEMA,
            "environment": self.environment,
            "rows": [row.as_json() for row in self.rows],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")


def load(path: Path) -> Results:
    """Read a file that `Results.save` wrote; raises FiguresError, OSError."""
    try:
        document = json.loads(path.read_text())
        if document["schema"] != SCHEMA:
            raise FiguresError(f"{path}: schema {document['schema']!r}, not {SCHEMA}")
        rows = [_row(each) for each in _is(list, document["rows"])]
        return Results(_is(dict, document["environment"]), rows)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise FiguresError(f"{path}: not a file of results: {error!r}") from error


def _row(each: dict[str, Any]) -> Row:
    """Read a row; the median, min and max that the file has too follow from the rounds."""
    texts = {name: _is(str, each[name]) for name in ("scenario", "system", "figure", "unit", "why")}
    if each["better"] not in get_args(Better):
        raise ValueError(f"better is {each['better']!r}")
    at = None if each["at"] is None else _is(int, each["at"])
    rounds = [float(_is(float, number)) for number in _is(list, each["rounds"])]
    if not all(isfinite(number) for number in rounds):
        raise ValueError(f"rounds {rounds}")
    return Row(better=each["better"], at=at, rounds=rounds, **texts)


def _is(kind: type, value: Any) -> Any:
    """Give `value` if it is of `kind`, as JSON has kinds: 3 is a float too, and true no number."""
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value
