"""Pictures of the results: `python -m bench.plots RESULTS.json DIRECTORY`, as PNG and as SVG.

They are to be read at a width of 900 pixels, on a light page and on a dark one: everything lies on
a white card. handfast has one strong colour, its peers are grey; bars carry their values, thin
black lines reach from the least of the rounds to the most.

The same results give the same files, byte by byte, with the same version of Matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Final, Literal

from bench.figures import SUBJECT, FiguresError, Results, Row, load
from bench.report import GROWTH, Key, digits, is_growth, is_share, shown, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS: Final = "#0b5fd0"
OURS_TOO: Final = "#6ea6ee"
"""Other ways to run handfast, such as with kernel TLS."""
PEERS: Final = {"nginx": "#8a9a90", "hitch": "#b3a88e", "haproxy": "#9d96ac", "stunnel": "#bda19d"}
ELSE: Final = "#b4bac2"
INK, MUTED, RULE, CARD = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"

DOTS: Final = 100
"""Pixels per inch as pages show the pictures; the files have twice as many."""
WIDE: Final = 9.0
"""Inches; that is 900 pixels."""
MARGIN: Final = 0.3
STYLE: Final[Any] = {  # of strings that Matplotlib's types know one by one
    "font.family": "sans-serif",  # DejaVu Sans, which Matplotlib has itself; others in SVG
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a reason is a dollar
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "handfast",
    "path.simplify": False,
}


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars for one figure of one scenario, once for each size that it was measured at."""

    scenario: str
    figure: str
    title: str
    only: Literal["least", "most", "all"] = "all"
    """Which of the sizes."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Panels under one title. `name` is that of the file."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    times: bool = False
    """Whether to say how many times as much as handfast a peer needs."""


CONNECTIONS: Final = (
    "ECDSA, full",
    "RSA-2048, full",
    "ECDSA, resumed",
    "RSA-2048, resumed",
    "TLS 1.2, full",
    "ML-KEM",
)

SIZES: Final = {"least": slice(1), "most": slice(-1, None), "all": slice(None)}

PICTURES: Final = (
    Picture(
        "overview",
        "What TLS in front of a service costs",
        (
            Panel("new connection, ECDSA, full", "CPU", "New connection"),
            Panel("small request", "CPU", "Small request"),
            Panel("bulk download", "CPU", "Download", only="least"),
            Panel("idle connection", "memory", "Idle connection", only="most"),
        ),
        times=True,
    ),
    Picture(
        "connections",
        "CPU time of a new connection",
        tuple(Panel(f"new connection, {kind}", "CPU", kind) for kind in CONNECTIONS),
    ),
    Picture(
        # Not of full handshakes: there the load is slower than the fastest of the systems.
        "rates",
        "What one core can do in a second",
        (
            Panel("new connection, ECDSA, resumed", "rate", "Resumed connections"),
            Panel("small request", "rate", "Small requests"),
        ),
    ),
    Picture(
        "requests",
        "Small requests on kept connections",
        (
            Panel("small request", "CPU", "CPU time of a request"),
            Panel("latency at a fixed rate", "p50", "Latency, median"),
            Panel("latency at a fixed rate", "p99", "Latency, 99 of 100 are below"),
            Panel("latency at a fixed rate", "p99.9", "Latency, 999 of 1000 are below"),
        ),
    ),
    Picture(
        "bulk",
        "CPU time of bulk data",
        (
            Panel("bulk download", "CPU", "Download"),
            Panel("bulk upload", "CPU", "Upload"),
        ),
    ),
    Picture(
        "throughput",
        "Throughput of bulk data, on one core",
        (
            Panel("bulk download", "throughput", "Download"),
            Panel("bulk upload", "throughput", "Upload"),
        ),
    ),
    Picture(
        "idle",
        "Memory of an idle connection",
        (
            Panel("idle connection", "memory", "User memory"),
            Panel("idle connection", "kernel memory", "Kernel memory"),
        ),
    ),
    Picture(
        "incidents",
        "What established connections notice",
        (
            Panel("handshake flood", "p99", "Latency in a handshake flood"),
            Panel("handshake flood", "p99 without", "The same without the flood"),
            Panel("reload under load", "failed", "Failed in a reload"),
            Panel("reload under load", "disturbed", "Disturbed by a reload"),
            Panel("upgrade with connections open", "kept", "Kept in an upgrade"),
            Panel("upgrade with connections open", "longest stall", "Standing still in an upgrade"),
            Panel(
                "upgrade with connections open",
                "old processes after it",
                "Old processes that go on after it",
            ),
        ),
    ),
    Picture(
        "start",
        "Start, and memory without connections",
        (
            Panel("start", "time", "Time to start"),
            Panel("start", "base memory", "Memory after the start"),
            Panel("whole installation, two workers", "memory", "Whole installation, two workers"),
        ),
    ),
)

UNITS: Final = {"us": "µs"}


def draw(results: Results, directory: Path) -> list[Path]:
    """Draw every picture that `results` have figures for; give the files. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    with _style():
        for picture in PICTURES:
            panels = list(_panels(results, picture.panels))
            if panels:
                drawn += _save(_bars(results, picture, panels), directory / picture.name)
        for scenario in dict.fromkeys(row.scenario for row in results.rows):
            figures = _growing(results, scenario) if is_growth(scenario) else []
            if figures:
                name = scenario.replace(": ", "-").replace(" ", "-")
                drawn += _save(_lines(results, scenario, figures), directory / name)
    return drawn


@contextmanager
def _style() -> Iterator[None]:
    # Here, so that only those who draw need Matplotlib.
    import matplotlib as mpl  # noqa: PLC0415

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _save(figure: Figure, path: Path) -> list[Path]:
    png, svg = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")
    figure.savefig(png, dpi=2 * DOTS, metadata={"Software": None})
    figure.savefig(svg, dpi=72, metadata={"Date": None, "Creator": None})
    return [png, svg]


@dataclass(frozen=True, slots=True)
class _Place:
    """A panel with what belongs into it."""

    key: Key
    title: str
    under: str
    better: str


def _panels(results: Results, panels: Iterable[Panel]) -> Iterator[_Place]:
    """Give every panel that has a figure."""
    measured = results.keys()
    for panel in panels:
        keys = [key for key in measured if key[:2] == (panel.scenario, panel.figure)]
        keys = [key for key in keys if any(row.rounds for row in _rows(results, key))]
        keys = sorted(keys, key=lambda key: key[2] or 0)[SIZES[panel.only]]
        for key in keys:
            row = _rows(results, key)[0]
            at = "" if key[2] is None else size(panel.scenario, key[2])
            # Where panels differ in size only, the title tells it.
            title, under = (f"{panel.title}, {at}", "") if len(keys) > 1 else (panel.title, at)
            yield _Place(key, title, _listed(_measure(row), under), row.better)


def _measure(row: Row) -> str:
    unit = "" if is_share(row) else UNITS.get(row.unit, row.unit)
    return _listed(row.figure, unit)


def _listed(*words: str) -> str:
    return ", ".join(word for word in words if word)


def _rows(results: Results, key: Key) -> list[Row]:
    rows = (results.row(key, system) for system in results.systems())
    return [row for row in rows if row is not None]


def _card(height: float, title: str, subtitle: str) -> Figure:
    """Give a white card with rounded corners, for pages of any colour, and its title."""
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.patches import FancyBboxPatch  # noqa: PLC0415

    figure = Figure(figsize=(WIDE, height), facecolor="none")
    edge, corner = 0.02, 0.12
    figure.patches.append(
        FancyBboxPatch(
            (edge + corner, edge + corner),
            WIDE - 2 * (edge + corner),
            height - 2 * (edge + corner),
            boxstyle=f"round,pad={corner}",
            facecolor=CARD,
            edgecolor=RULE,
            linewidth=1,
            transform=figure.dpi_scale_trans,
            zorder=-1,
        )
    )
    y = 1 - 0.34 / height
    figure.text(MARGIN / WIDE, y, title, fontsize=16, fontweight="bold", va="center")
    y = 1 - 0.64 / height
    figure.text(MARGIN / WIDE, y, subtitle, fontsize=11.5, color=MUTED, va="center")
    return figure


def _place(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Give axes at left, top, width and height in inches from the upper left corner."""
    height = figure.get_figheight()
    left, top, wide, high = box
    axes = figure.add_axes((left / WIDE, 1 - (top + high) / height, wide / WIDE, high / height))
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)
    return axes


def _names(results: Results) -> float:
    """Give the inches that the longest name of a system takes."""
    return 0.25 + 0.0875 * max(len(system) for system in results.systems())


def _head(axes: Axes, title: str, under: str, indent: float) -> None:
    """Put the title of a panel over it, from `indent` inches left of it on, and what is shown."""
    for text, y, look in (
        (title, 27, {"fontsize": 12.5, "fontweight": "bold"}),
        (under, 11, {"fontsize": 10.5, "color": MUTED}),
    ):
        _say(axes, text, (0, 1), (-72 * indent, y), xycoords="axes fraction", **look)


def _say(
    axes: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], **look: Any
) -> None:
    """Write beside a point, `shift` typographic points away."""
    axes.annotate(
        text, at, xytext=shift, textcoords="offset points", va="center", annotation_clip=False,
        **look,
    )  # fmt: skip


# Bars


BAR: Final = 0.27
"""Inches from one bar to the next."""
TIMES: Final = "\N{MULTIPLICATION SIGN}"


def _bars(results: Results, picture: Picture, panels: list[_Place]) -> Figure:
    top, above, gap, bottom = 0.86, 0.6, 0.2, 0.12
    high = BAR * len(results.systems())
    lines, across = -(-len(panels) // 2), min(2, len(panels))
    height = top + lines * (above + high + gap) + bottom
    betters = {panel.better for panel in panels}
    words = [f"{panels[0].better} is better"] if len(betters) == 1 else []
    words += [f"{TIMES}: times what handfast needs"] if picture.times else []
    words += ["medians, thin lines: least to most"]
    figure = _card(height, picture.title, " · ".join(words))
    wide, names = (WIDE - 2 * MARGIN) / across, _names(results)
    for number, panel in enumerate(panels):
        left = MARGIN + number % 2 * (wide + 0.1)
        over = top + number // 2 * (above + high + gap) + above
        axes = _place(figure, (left + names, over, wide - names - 0.2, high))
        under = _listed(panel.under, f"{panel.better} is better" if len(betters) > 1 else "")
        _head(axes, panel.title, under, names)
        _fill(axes, results, panel.key, times=picture.times)
    return figure


def _fill(axes: Axes, results: Results, key: Key, *, times: bool) -> None:
    """Draw the bars of a panel."""
    systems = results.systems()
    most = max(max(row.rounds) for row in _rows(results, key) if row.rounds)
    for place, system in enumerate(systems):
        row = results.row(key, system)
        look = {"color": OURS, "fontweight": "bold"} if system == SUBJECT else {"color": INK}
        _say(axes, system, (0, place), (-6, 0), ha="right", **look)
        if row is None or row.median is None:
            why = shorten((row and row.why) or "not measured", 40, placeholder=" …")
            _say(axes, why, (0, place), (5, 0), fontsize=10, fontstyle="italic", color=MUTED)
            continue
        axes.barh(place, row.median, height=0.76, color=colour(system))
        least, last = min(row.rounds), max(row.rounds)
        if least != last:
            axes.plot([least, last], [place, place], color=INK, linewidth=1.1)
        value = shown(row, row.median)[0].replace("%", " %")
        ratio = results.ratio(key, system) if times and system != SUBJECT else None
        if ratio:
            value += f"  {TIMES}{1 / ratio:.{min(2, digits(1 / ratio))}f}"
        _say(axes, value, (max(last, 0), place), (5, 0), **look)
    # What is right of the longest bar is for its value.
    axes.set_xlim(0, max(most, 0) * (1.5 if times else 1.3) or 1)
    axes.set_ylim(len(systems) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)


def colour(system: str) -> str:
    """Give the colour that a system has in every picture."""
    if system == SUBJECT:
        return OURS
    return OURS_TOO if system.startswith(SUBJECT) else PEERS.get(system, ELSE)


# Lines


def _growing(results: Results, scenario: str) -> list[str]:
    """Give the figures of a scenario that some system has at two sizes, or more."""
    found = dict.fromkeys(row.figure for row in results.rows if row.scenario == scenario)
    return [
        figure
        for figure in found
        if any(len(_line(results, scenario, figure, each)) > 1 for each in results.systems())
    ]


def _line(results: Results, scenario: str, figure: str, system: str) -> list[tuple[int, Row]]:
    rows = (
        (row.at, row)
        for row in results.rows
        if (row.scenario, row.figure, row.system) == (scenario, figure, system) and row.rounds
    )
    return sorted(((at, row) for at, row in rows if at is not None), key=lambda point: point[0])


DASHES: Final[dict[str, Any]] = {
    SUBJECT: "-",
    "nginx": (0, (6, 2)),
    "hitch": (0, (2, 1.5)),
    "haproxy": (0, (7, 2, 1.5, 2)),
    "stunnel": (0, (1, 1)),
}
APART: Final = 0.105
"""The least distance of two names at the ends of lines, by the height of the panel."""


def _lines(results: Results, scenario: str, figures: list[str]) -> Figure:
    noun = scenario.removeprefix(GROWTH)
    top, above, high, below = 0.86, 0.6, 2.1, 0.75
    lines, across = -(-len(figures) // 2), min(2, len(figures))
    height = top + lines * (above + high + below)
    subtitle = "median of the rounds, in a band from least to most"
    figure = _card(height, f"As the number of {noun} grows", subtitle)
    wide = (WIDE - 2 * MARGIN) / across
    scale, names = 0.62, _names(results)
    for number, name in enumerate(figures):
        left = MARGIN + number % 2 * wide
        over = top + number // 2 * (above + high + below) + above
        axes = _place(figure, (left + scale, over, wide - scale - names, high))
        found = {each: _line(results, scenario, name, each) for each in results.systems()}
        found = {system: line for system, line in found.items() if line}
        _trace(axes, found)
        row = next(iter(found.values()))[0][1]
        unit = "" if is_share(row) else UNITS.get(row.unit, row.unit)
        log = "log scale" if axes.get_yscale() == "log" else ""
        title = name[:1].upper() + name[1:]
        _head(axes, title, _listed(unit, f"{row.better} is better", log), scale)
        axes.set_xlabel(noun, fontsize=11)
    return figure


def _trace(axes: Axes, found: dict[str, list[tuple[int, Row]]]) -> None:
    """Draw the lines of a panel, handfast's on top, and name them at their ends."""
    everything = [number for line in found.values() for _, row in line for number in row.rounds]
    sizes = sorted({at for line in found.values() for at, _ in line})
    _scale(axes, sizes, min(everything), max(everything))
    for system, line in found.items():
        ours = system == SUBJECT
        places = [at for at, _ in line]
        look: dict[str, Any] = {"color": colour(system), "zorder": 3 if ours else 2}
        axes.plot(
            places, [row.median or 0 for _, row in line], linestyle=DASHES.get(system, "-"),
            marker="o", markersize=6 if ours else 4, linewidth=2.8 if ours else 1.8, **look,
        )  # fmt: skip
        least, most = ([end(row.rounds) for _, row in line] for end in (min, max))
        axes.fill_between(places, least, most, alpha=0.2, linewidth=0, **look)
    _name_the_ends(axes, {system: line[-1] for system, line in found.items()})


def _name_the_ends(axes: Axes, ends: dict[str, tuple[int, Row]]) -> None:
    to_axes = axes.transData + axes.transAxes.inverted()
    points = {each: to_axes.transform((at, row.median or 0.0)) for each, (at, row) in ends.items()}
    right = max(x for x, _ in points.values())
    lead = 12 / 72 / (axes.bbox.width / axes.figure.dpi)  # 12 points
    for system, y in spread({system: y for system, (_, y) in points.items()}).items():
        look = {"color": OURS, "fontweight": "bold"} if system == SUBJECT else {"color": INK}
        _say(axes, system, (right, y), (15, 0), xycoords="axes fraction", **look)
        # A thin line leads to a name that had to move, or whose line ends before the others.
        axes.plot(
            [points[system][0], right + lead], [points[system][1], y], color=colour(system),
            linewidth=0.9, transform=axes.transAxes, clip_on=False, zorder=1,
        )  # fmt: skip


def _scale(axes: Axes, sizes: list[int], least: float, most: float) -> None:
    """Choose the axes: logarithmic for sizes and figures of several magnitudes, else from 0."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: PLC0415

    if sizes[0] > 0 and sizes[-1] >= 20 * sizes[0]:
        axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{at:,}" for at in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    if least > 0 and most >= 20 * least:
        axes.set_yscale("log")
        axes.set_ylim(least / 1.5, most * 1.5)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if most < 300 * least else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(min(0, least * 1.1), max(most, 0) * 1.1 or 1)
        axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.tick_params(length=0, labelsize=10.5, colors=MUTED)
    axes.spines["left"].set_visible(False)


def spread(places: dict[str, float]) -> dict[str, float]:
    """Move places up and down, as little as it takes, until they are APART at least.

    This is a least-squares fit by adjacent pools: less its turn's distance, no place may be below
    the one before.
    """
    names = sorted(places, key=lambda name: places[name])
    pools: list[list[float]] = []
    for turn, name in enumerate(names):
        pools.append([places[name] - turn * APART])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    fitted = [fmean(pool) for pool in pools for _ in pool]
    return {name: fitted[turn] + turn * APART for turn, name in enumerate(names)}


def main() -> int:
    """Draw the results of a file."""
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    try:
        drawn = draw(load(options.results), options.directory)
    except (FiguresError, OSError) as error:
        print(f"bench.plots: {error}", file=sys.stderr)
        return 2
    for path in drawn:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
