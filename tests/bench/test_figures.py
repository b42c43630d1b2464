"""Files of results: what was written is read, and anything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.figures import FiguresError, Results, Row, load
from harness import measured

ROWS = st.builds(
    Row,
    scenario=st.text(max_size=8),
    system=st.text(max_size=8),
    figure=st.text(max_size=8),
    unit=st.text(max_size=4),
    better=st.sampled_from(["lower", "higher"]),
    at=st.none() | st.integers(),
    rounds=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    why=st.text(max_size=8),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
ONE_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
"""Every example overwrites the same file."""


def written(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    return path


def document() -> dict[str, Any]:
    row = Row("small request", "handfast", "CPU", "us", rounds=[1.0, 2.0])
    return {"schema": 1, "environment": {}, "rows": [row.as_json()]}


@ONE_FILE
@given(rows=st.lists(ROWS, max_size=3))
def test_what_was_saved_is_loaded(tmp_path: Path, rows: list[Row]) -> None:
    saved = Results({"kernel": "6.1"}, rows)
    saved.save(tmp_path / "results.json")
    assert load(tmp_path / "results.json") == saved


def test_a_directory_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    measured.results().save(tmp_path / "new" / "results.json")
    assert load(tmp_path / "new" / "results.json") == measured.results()


@ONE_FILE
@given(content=st.binary(max_size=64))
def test_bytes_that_are_no_results_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(FiguresError, match=r"results\.json"):
        load(path)


@ONE_FILE
@given(content=JSON)
def test_json_of_another_form_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(FiguresError, match=r"results\.json"):
        load(written(tmp_path, content))


@ONE_FILE
@given(key=st.sampled_from(sorted(document()["rows"][0])), value=JSON)
def test_a_row_with_a_value_of_another_kind_is_refused_or_harmless(
    tmp_path: Path, key: str, value: Any
) -> None:
    changed = document()
    changed["rows"][0][key] = value
    try:
        results = load(written(tmp_path, changed))
    except FiguresError:
        return
    row = results.rows[0]
    assert all(isinstance(text, str) for text in (row.scenario, row.system, row.unit, row.why))
    assert row.at is None or type(row.at) is int
    assert row.better in {"lower", "higher"}
    assert all(abs(number) < float("inf") for number in row.rounds)


@pytest.mark.parametrize("missing", ["scenario", "system", "figure", "unit", "better", "rounds"])
def test_a_row_without_one_of_its_keys_is_refused(tmp_path: Path, missing: str) -> None:
    changed = document()
    del changed["rows"][0][missing]
    with pytest.raises(FiguresError, match=missing):
        load(written(tmp_path, changed))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" * 400, "true", '"1"', "null"])
def test_a_round_that_is_no_finite_number_is_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document()).replace('"rounds": [1.0,', f'"rounds": [{number},'))
    with pytest.raises(FiguresError, match="not a file of results"):
        load(path)


def test_a_later_schema_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(FiguresError, match="schema 2, not 1"):
        load(written(tmp_path, document() | {"schema": 2}))


def test_json_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("[" * 100_000)
    with pytest.raises(FiguresError):
        load(path)


def test_a_ratio_needs_both_figures_and_a_divisor() -> None:
    def row(system: str, rounds: list[float]) -> Row:
        return Row("s", system, "f", "us", rounds=rounds)

    rows = [row("handfast", [2, 4, 3]), row("nginx", [6]), row("hitch", []), row("stunnel", [0])]
    results = Results({}, rows)
    key = ("s", "f", None)
    assert results.ratio(key, "nginx") == 0.5
    assert results.ratio(key, "hitch") is None
    assert results.ratio(key, "stunnel") is None
    assert results.ratio(key, "haproxy") is None
