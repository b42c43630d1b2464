"""What the documentation shows is what the published run measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.figures import load
from bench.plots import PICTURES
from bench.publish import PAGES, PUBLISHED, TABLES, tables
from bench.systems import DEFAULT, REPOSITORY
from bench.targets import judge


def test_the_tables_are_those_of_the_published_results() -> None:
    assert TABLES.read_text() == tables(load(PUBLISHED))


def test_the_published_results_have_every_system_and_say_whether_targets_are_met() -> None:
    results = load(PUBLISHED)

    assert results.systems() == list(DEFAULT)
    assert all(verdict.met is not None for verdict in judge(results))


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_every_picture_of_a_page_is_there(page: str) -> None:
    file = REPOSITORY / page
    linked = re.findall(r"\]\(((?:docs/)?benchmarks/[a-z-]+\.(?:png|svg))\)", file.read_text())

    assert linked
    assert [path for path in linked if not (file.parent / path).is_file()] == []


def test_every_picture_that_can_be_drawn_is_published() -> None:
    drawn = {path.stem for path in Path(PAGES).glob("*.svg")}

    assert drawn >= {picture.name for picture in PICTURES}
    assert drawn == {path.stem for path in Path(PAGES).glob("*.png")}
