"""Pictures are drawn of whatever was measured, the same ones each time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import plots
from bench.figures import Results, Row
from harness import measured

FULL = measured.results()
NAMES = {picture.name for picture in plots.PICTURES} | {
    "grow-connections",
    "grow-workers",
    "grow-certificates",
}
SOME = measured.only(
    FULL, lambda row: row.scenario in {"reload under load", "small request", "grow: workers"}
)
"""Of each kind of picture one, for drawing takes its time."""
SOME_NAMES = {"overview", "requests", "incidents", "grow-workers"}
PNG = b"\x89PNG\r\n\x1a\n"
SVG = "{http://www.w3.org/2000/svg}"


def drawn(results: Results, directory: Path) -> set[str]:
    """Draw, check that each picture is there in both forms, and give their names."""
    files = plots.draw(results, directory)
    assert set(files) == set(directory.iterdir())
    for file in files:
        assert file.read_bytes().startswith(PNG if file.suffix == ".png" else b"<?xml")
        assert {file.with_suffix(".png"), file.with_suffix(".svg")} <= set(files)
    return {file.stem for file in files}


def words(path: Path) -> list[str]:
    """Give the text in an SVG file."""
    # The file is this test's own.
    root = ElementTree.parse(path).getroot()  # noqa: S314
    return ["".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pictures of a whole run."""
    directory = tmp_path_factory.mktemp("here") / "new" / "pictures"
    assert drawn(FULL, directory) == NAMES
    return directory


def test_another_process_gives_the_same_files(pictures: Path, tmp_path: Path) -> None:
    FULL.save(tmp_path / "results.json")
    command = [sys.executable, "-m", "bench.plots", f"{tmp_path}/results.json", f"{tmp_path}/there"]
    subprocess.run(command, check=True, cwd=Path(plots.__file__).parents[1])
    for one in pictures.iterdir():
        assert one.read_bytes() == (tmp_path / "there" / one.name).read_bytes(), one.name


def test_drawing_again_gives_the_same_files(tmp_path: Path) -> None:
    first, second = (plots.draw(SOME, tmp_path / name) for name in ("one", "two"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def _one_round(row: Row) -> Row:
    return replace(row, rounds=row.rounds[:1])


@pytest.mark.parametrize(
    ("keep", "names"),
    [
        (lambda row: row.system == "handfast", SOME_NAMES),
        (lambda row: row.system != "handfast", SOME_NAMES),
        (lambda row: row.system in {"handfast", "nginx"}, SOME_NAMES),
        (lambda row: row.scenario == "small request", {"overview", "requests"}),
        (lambda row: row.scenario == "grow: workers", {"grow-workers"}),
        (lambda row: row.scenario == "grow: workers" and row.at == 1, set()),
        (lambda row: row.figure == "busy", set()),
        (lambda row: False, set()),
    ],
)
def test_parts_of_a_run_give_the_pictures_that_they_have_figures_for(
    tmp_path: Path, keep: Callable[[Row], bool], names: set[str]
) -> None:
    assert drawn(measured.only(SOME, keep), tmp_path) == names


def test_rounds_may_be_missing(tmp_path: Path) -> None:
    gaps = [
        replace(row, rounds=[], why="was forgotten") if place % 3 == 0 else _one_round(row)
        for place, row in enumerate(SOME.rows)
    ]
    assert drawn(Results({}, gaps), tmp_path) == SOME_NAMES


def test_a_run_without_a_single_figure_gives_no_picture(tmp_path: Path) -> None:
    assert drawn(Results({}, [replace(row, rounds=[]) for row in FULL.rows]), tmp_path) == set()


@pytest.mark.parametrize("number", [0.0, -1.5, 1e12, 1e-12])
def test_figures_of_any_size_can_be_drawn(tmp_path: Path, number: float) -> None:
    rows = [replace(row, rounds=[number, number]) for row in SOME.rows if row.rounds]
    assert drawn(Results({}, rows), tmp_path) == SOME_NAMES


def test_names_and_reasons_that_nobody_expects_can_be_drawn(tmp_path: Path) -> None:
    rows = [
        Row("small request", "handfast", "CPU", "us", rounds=[1.0]),
        Row("small request", "$x_$", "CPU", "us", why="costs $5, or $6 & <more>"),
        Row("small request", "_" * 30, "CPU", "us", rounds=[2.0]),
    ]
    assert drawn(Results({}, rows), tmp_path) == {"overview", "requests"}
    assert {"$x_$", "costs $5, or $6 & <more>"} <= set(words(tmp_path / "requests.svg"))


def test_text_stays_text_with_values_units_and_what_is_better(pictures: Path) -> None:
    said = words(pictures / "connections.svg")
    value = FULL.row(("new connection, ECDSA, full", "CPU", None), "stunnel")
    assert value is not None
    assert value.median is not None
    assert f"{value.median:.0f}" in said
    assert "CPU, µs" in said
    assert any("lower is better" in line for line in said)
    assert any("higher is better" in line for line in words(pictures / "throughput.svg"))


def test_a_missing_figure_has_its_reason_in_the_place_of_its_bar(pictures: Path) -> None:
    assert words(pictures / "incidents.svg").count(measured.NO_UPGRADE) == 6


def test_names_at_the_ends_of_lines_keep_apart_and_in_order() -> None:
    places = {"a": 0.5, "b": 0.51, "c": 0.52, "d": 0.95, "e": 0.1}
    spread = plots.spread(places)
    assert sorted(spread, key=lambda name: spread[name]) == ["e", "a", "b", "c", "d"]
    assert all(b - a >= plots.APART - 1e-9 for a, b in pairwise(sorted(spread.values())))
    assert spread["b"] == pytest.approx(0.51)
    assert spread["d"] == 0.95


def test_a_wrong_file_is_reported_and_nothing_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    command = [sys.executable, "-m", "bench.plots", f"{tmp_path}/results.json", f"{tmp_path}/there"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=Path(plots.__file__).parents[1]
    )
    assert done.returncode == 2
    assert "not a file of results" in done.stderr
    assert not (tmp_path / "there").exists()


def test_only_drawing_needs_matplotlib() -> None:
    program = "import sys, bench.plots; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(plots.__file__).parents[1])
