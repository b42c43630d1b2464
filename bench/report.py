"""The results as people read them: a table for the terminal, and Markdown for the documentation."""

from __future__ import annotations

from typing import Final

from bench.figures import SUBJECT, Results, Row
from bench.targets import Verdict, judge

Key = tuple[str, str, int | None]

SIZES: Final = {
    "new connection": "connections",
    "bulk": "streams",
    "idle connection": "connections",
    "handshake flood": "connections",
    "reload": "connections",
    "upgrade": "connections",
}
"""What `Row.at` counts, by the first words of a scenario. "grow: workers" says so itself."""
GROWTH: Final = "grow: "
BETTER, WORSE, ALIKE = "+", "!", "~"
LEGEND: Final = (
    "Median of the rounds (least-most). /peer: handfast's median by the peer's; + handfast is\n"
    "better in every round, ! worse in every round, ~ their ranges overlap."
)


def table(results: Results) -> str:
    """Lay everything out for a terminal: figures, ratios, what is missing and why, targets."""
    systems, peers = results.systems(), _peers(results)
    notes = _Notes()
    lines: list[str | list[str]] = [["", *systems, *(f"/{peer}" for peer in peers)]]
    for scenario, keys in _scenarios(results):
        lines.append("")
        for at, members in _by_size(keys):
            lines.append(_headed(scenario, at))
            for key in members:
                cells = [_cell(results, key, system, notes) for system in systems]
                cells += [_beside(results, key, peer) for peer in peers]
                lines.append([f"  {_figure(results, key)}", *cells])
    parts = [_aligned(lines, 1 + len(systems)), LEGEND, notes.text(), _targets(results)]
    return "\n\n".join(part for part in parts if part)


def summary(results: Results) -> str:
    """Give the same in Markdown, from a third-level heading on, to be put into a page."""
    systems, peers = results.systems(), _peers(results)
    notes = _Notes()
    parts = []
    for scenario, keys in _scenarios(results):
        lines = [_markdown(["", *systems]), _markdown(["---"] * (1 + len(systems)))]
        for key in keys:
            cells = []
            for system in systems:
                cell = _cell(results, key, system, notes)
                ratio = _beside(results, key, system) if system in peers else ""
                cells.append(f"{cell}<br>*{ratio}*" if ratio else cell)
            at = "" if key[2] is None else f", {size(scenario, key[2])}"
            lines.append(_markdown([_figure(results, key) + at, *cells]))
        parts.append(f"### {_escaped(scenario[:1].upper() + scenario[1:])}\n\n" + "\n".join(lines))
    parts.append(
        "Medians of the rounds, with the least and the most. In italics: handfast's median by the\n"
        f"peer's; `{BETTER}` handfast is better in every round, `{WORSE}` worse in every round,\n"
        f"`{ALIKE}` their ranges overlap."
    )
    parts.append("\n".join(f"- {_escaped(line)}" for line in notes.text().splitlines()))
    targets = [_markdown(["", "goal", "is", ""]), _markdown(["---"] * 4)]
    targets += [_markdown(_target(results, each)) for each in judge(results)]
    parts.append("### Targets\n\n" + "\n".join(targets))
    conditions = [f"- {name}: {value}" for name, value in results.environment.items()]
    parts.append("### Conditions\n\n" + "\n".join(_escaped(line) for line in conditions))
    return "\n\n".join(part for part in parts if part) + "\n"


class _Notes:
    """Why figures are missing, by number: systems with the same reason share a note."""

    def __init__(self) -> None:
        self._systems: dict[str, list[str]] = {}

    def mark(self, why: str, system: str) -> str:
        """Give what stands in the cell of a missing figure."""
        systems = self._systems.setdefault(why, [])
        if system not in systems:
            systems.append(system)
        return f"- [{1 + list(self._systems).index(why)}]"

    def text(self) -> str:
        return "\n".join(
            f"[{number}] {', '.join(systems)}: {why}"
            for number, (why, systems) in enumerate(self._systems.items(), 1)
        )


def size(scenario: str, at: int) -> str:
    """Say what a scenario was measured at: "32 streams"."""
    noun = scenario.removeprefix(GROWTH) if is_growth(scenario) else ""
    noun = noun or next((word for start, word in SIZES.items() if scenario.startswith(start)), "")
    if not noun:
        return f"at {at:,}"
    return f"{at:,} {noun.removesuffix('s') if at == 1 else noun}"


def named(key: Key) -> str:
    """Name a figure: "bulk download, 32 streams: CPU"."""
    scenario, figure, at = key
    return f"{_headed(scenario, at)}: {figure}"


def is_growth(scenario: str) -> bool:
    """Whether a scenario is measured at many sizes, to see how a figure grows with them."""
    return scenario.startswith(GROWTH)


def is_share(row: Row) -> bool:
    """Whether a figure is a share of 1, to be shown in percent."""
    return row.figure == "busy" or row.unit == "share"


def shown(row: Row, *numbers: float) -> list[str]:
    """Write numbers of a row with the digits that its median deserves: three, or two below 1."""
    if is_share(row):
        return [f"{100 * number:.0f}%" for number in numbers]
    if all(number == int(number) for number in (*row.rounds, *numbers)):
        return [f"{number:.0f}" for number in numbers]
    return [f"{number:.{digits(row.median or 0)}f}" for number in numbers]


def digits(number: float) -> int:
    """Give how many decimals a number is shown with."""
    steps = (100, 10, 0.1, 0.01)
    return next((n for n, least in enumerate(steps) if abs(number) >= least), len(steps))


def compared(results: Results, key: Key, peer: str) -> str:
    """Say whether handfast is BETTER or WORSE in every round, or ALIKE; "" without figures."""
    ours, theirs = results.row(key, SUBJECT), results.row(key, peer)
    if ours is None or theirs is None or not ours.rounds or not theirs.rounds:
        return ""
    lower = max(ours.rounds) < min(theirs.rounds)
    higher = min(ours.rounds) > max(theirs.rounds)
    if not lower and not higher:
        return ALIKE
    return BETTER if lower == (ours.better == "lower") else WORSE


def _scenarios(results: Results) -> list[tuple[str, list[Key]]]:
    """Give the scenarios in the order of the run, with what was measured in each."""
    found: dict[str, list[Key]] = {}
    keys = results.keys()
    for key in keys:
        found.setdefault(key[0], []).append(key)
    return list(found.items())


def _by_size(keys: list[Key]) -> list[tuple[int | None, list[Key]]]:
    sizes = dict.fromkeys(at for _, _, at in keys)
    return [(at, [key for key in keys if key[2] == at]) for at in sizes]


def _headed(scenario: str, at: int | None) -> str:
    if at is None:
        return scenario
    return (
        f"{GROWTH}{size(scenario, at)}"
        if is_growth(scenario)
        else f"{scenario}, {size(scenario, at)}"
    )


def _figure(results: Results, key: Key) -> str:
    """Name a line of a scenario: "CPU, s/GB"."""
    row = next(row for row in results.rows if row.key == key)
    return row.figure if is_share(row) or not row.unit else f"{row.figure}, {row.unit}"


def _peers(results: Results) -> list[str]:
    systems = results.systems()
    return [system for system in systems if system != SUBJECT] if SUBJECT in systems else []


def _cell(results: Results, key: Key, system: str, notes: _Notes) -> str:
    """Give "median (least-most)"."""
    row = results.row(key, system)
    if row is None or row.median is None:
        return notes.mark((row and row.why) or "not measured", system)
    middle, least, most = shown(row, row.median, min(row.rounds), max(row.rounds))
    if least == most:
        return middle
    to = " to " if least.startswith("-") else "-"
    return f"{middle} ({least.removesuffix('%')}{to}{most})"


def _beside(results: Results, key: Key, peer: str) -> str:
    """Give handfast's figure by a peer's, and whether that is good."""
    if key[1] == "busy":
        return ""  # a condition of the measurement, in which nobody is better
    ratio = results.ratio(key, peer)
    text = "" if ratio is None else f"{ratio:.{min(2, digits(ratio) or 1)}f}"
    return f"{text} {compared(results, key, peer)}".strip()


def _aligned(lines: list[str | list[str]], figures: int) -> str:
    """Align cells below the first line's; what is left of their first blank goes to the right.

    Plain text stays as it is. The first `figures` columns have medians, over which their headings
    end; those of the others begin where the columns begin.
    """
    rows = [line for line in lines if isinstance(line, list)]
    heads, body = rows[0], [[cell.partition(" ") for cell in row] for row in rows[1:]]
    left = [max((len(row[n][0]) for row in body), default=0) for n in range(len(heads))]
    for n in range(1, len(heads)):
        cells = [heads[n].rjust(left[n]) if n < figures else heads[n]]
        cells += [f"{before.rjust(left[n])} {after}" for before, _, after in (r[n] for r in body)]
        width = max(len(cell) for cell in cells)
        for row, cell in zip(rows, cells, strict=True):
            row[n] = cell.ljust(width)
    width = max(len(row[0]) for row in rows)
    for row in rows:
        row[0] = row[0].ljust(width)
    return "\n".join(x if isinstance(x, str) else "  ".join(x).rstrip() for x in lines)


def _targets(results: Results) -> str:
    rows = [["targets", "goal", "is", ""], *(_target(results, each) for each in judge(results))]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _target(results: Results, verdict: Verdict) -> list[str]:
    """Give what is measured, what is demanded, what is, and what that means."""
    target = verdict.target
    row = results.row(target.key, SUBJECT)
    if target.peer:
        goal = f"{'<' if target.below else '<='} {target.most:.2f} of {target.peer}"
    else:
        goal = f"<= {target.most:g} {row.unit if row else ''}".rstrip()
    got = "-" if verdict.got is None else f"{verdict.got:.{min(2, digits(verdict.got) or 1)}f}"
    return [named(target.key), goal, got, verdict.words]


def _markdown(cells: list[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    """Keep text in its cell and line."""
    return " ".join(text.split()).replace("|", "\\|")
