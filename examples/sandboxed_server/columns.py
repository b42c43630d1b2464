"""The show on a terminal of 80 columns: the three actors side by side, then what was reached."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from typing import Final

from show import THE_THREE, Play

_WIDTHS: Final = (24, 23, 27)
_BAR: Final = " | "
_ATTEMPT: Final = 31
_CELL: Final = 16


def side_by_side(play: Play) -> Iterator[str]:
    """Give the lines of what everybody said, in its order, each in the column of who said it."""
    pids = play.pids
    yield from _row("CLIENT", "MAN IN THE MIDDLE", "SERVER")
    three = "\n".join(f"{name} {pids[name]}" for name in THE_THREE)
    yield from _row(f"pid {pids['client']}", f"pid {pids['middle']}", three)
    yield _rule()
    for name, text in play.said:
        column = {"client": 0, "middle": 1}.get(name, 2)
        cells = ["", "", ""]
        cells[column] = f"{name}: {text}" if column == 2 else text
        yield from _row(*cells)
    yield _rule()


def _row(*cells: str) -> Iterator[str]:
    wrapped = [_wrap(cell, width) for cell, width in zip(cells, _WIDTHS, strict=True)]
    for pieces in zip_longest(*wrapped, fillvalue=""):
        padded = (f"{piece:{width}}" for piece, width in zip(pieces, _WIDTHS, strict=True))
        yield _BAR.join(padded).rstrip()


def _wrap(cell: str, width: int) -> list[str]:
    return [piece for line in cell.splitlines()
            for piece in textwrap.wrap(line, width, subsequent_indent="  ")]  # fmt: skip


def _rule() -> str:
    return "-+-".join("-" * width for width in _WIDTHS)


def table(play: Play) -> Iterator[str]:
    """Give the lines of what each process of the server could reach."""
    yield _cells("Tried in each process:", *THE_THREE)
    yield _cells("", *(f"pid {play.pids[name]}" for name in THE_THREE))
    yield _cells("", *(f"uid {play.users[name]}" for name in THE_THREE))
    surprises = play.surprises()
    for attempt, by in play.reached.items():
        yield _cells(attempt, *(_cell(play, attempt, name, surprises) for name in by))
    if surprises:
        yield "(!) is not as it is meant to be."
    for each in play.missing:
        yield from textwrap.wrap(f"This system cannot confine by {each}.", 80)


def _cells(first: str, *others: str) -> str:
    return (f"{first:{_ATTEMPT}}" + "".join(f" {each:{_CELL - 1}}" for each in others)).rstrip()


def _cell(play: Play, attempt: str, name: str, surprises: list[tuple[str, str]]) -> str:
    refusal = play.refusals[attempt][name]
    text = "YES" if play.reached[attempt][name] else f"no: {refusal}" if refusal else "no"
    return f"{text} (!)" if (attempt, name) in surprises else text


def summary(play: Play) -> Iterator[str]:
    """Give the lines that say what it all comes to."""
    size = sum(map(len, play.recording.values()))
    there = "is in it" if play.overheard else "is not in it"
    yield f"The secret {'has arrived' if play.arrived else 'has NOT arrived'}."
    yield f"The man in the middle recorded {size} bytes; the secret {there}."
