"""The table and the summary: every figure has its place, and every gap its reason."""

from __future__ import annotations

import pytest

from bench import report, targets
from bench.figures import Better, Results, Row
from harness import measured

FULL = measured.results()


def results(*rows: Row) -> Results:
    return Results({"kernel": "6.1"}, list(rows))


def row(system: str, *rounds: float, better: Better = "lower", why: str = "") -> Row:
    return Row("small request", system, "CPU", "us", better, None, list(rounds), why)


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(start))


def test_a_cell_has_the_median_with_least_and_most() -> None:
    text = report.table(results(row("handfast", 13.2, 14.9, 12.1)))
    assert "13.2 (12.1-14.9)" in line_of(text, "CPU, us")


def test_a_range_from_below_zero_can_be_read() -> None:
    assert "0.50 (-1.50 to 2.50)" in report.table(results(row("handfast", -1.5, 0.5, 2.5)))


def test_a_single_round_has_no_range() -> None:
    assert line_of(report.table(results(row("handfast", 13.25))), "CPU").split() == [
        "CPU,",
        "us",
        "13.2",
    ]


@pytest.mark.parametrize(
    ("rounds", "shown"),
    [
        ([1234.56], "1235"),
        ([123.456], "123"),
        ([12.3456], "12.3"),
        ([1.23456], "1.23"),
        ([0.123456], "0.12"),
        ([0.0123456], "0.012"),
        ([0.0], "0"),
        ([3.0, 7.0, 5.0], "5"),
    ],
)
def test_figures_have_about_three_digits(rounds: list[float], shown: str) -> None:
    measured_row = row("handfast", *rounds)
    assert report.shown(measured_row, measured_row.median or 0) == [shown]


def test_a_share_is_in_percent() -> None:
    busy = Row("small request", "handfast", "busy", "share", rounds=[0.97, 1.0, 0.98])
    text = report.table(results(busy))
    assert "98% (97-100%)" in line_of(text, "busy")


@pytest.mark.parametrize(
    ("ours", "theirs", "better", "mark"),
    [
        ([1.0, 1.1], [1.2, 1.3], "lower", "+"),
        ([1.2, 1.3], [1.0, 1.1], "lower", "!"),
        ([1.0, 1.2], [1.1, 1.3], "lower", "~"),
        ([1.2, 1.3], [1.0, 1.1], "higher", "+"),
        ([1.0, 1.1], [1.2, 1.3], "higher", "!"),
    ],
)
def test_a_ratio_tells_whether_it_is_good(
    ours: list[float], theirs: list[float], better: Better, mark: str
) -> None:
    text = report.table(
        results(row("handfast", *ours, better=better), row("nginx", *theirs, better=better))
    )
    assert line_of(text, "CPU, us").split()[-1] == mark


def test_a_peer_that_did_nothing_wrong_is_told_from_handfast_which_did() -> None:
    text = report.table(results(row("handfast", 5), row("nginx", 0)))
    assert line_of(text, "CPU, us").split()[-2:] == ["0", "!"]


def test_a_missing_figure_has_a_numbered_note_that_systems_share() -> None:
    why = "has no binary upgrade"
    rows = [row("handfast", 1), row("nginx", why=why), row("hitch", why=why), row("stunnel")]
    text = report.table(results(*rows))
    assert line_of(text, "CPU, us").count("[1]") == 2
    assert line_of(text, "[1]") == f"[1] nginx, hitch: {why}"
    assert line_of(text, "[2]") == "[2] stunnel: not measured"


def test_columns_are_aligned() -> None:
    table, _, _ = report.table(FULL).partition(f"\n\n{report.LEGEND}")
    head, *lines = table.splitlines()
    starts = [head.index(f"/{peer}") for peer in ("nginx", "hitch", "haproxy", "stunnel")]
    rows = [line.ljust(len(head)) for line in lines if line.startswith("  ")]
    assert len(rows) == len(FULL.keys())
    assert all(line[start - 2 : start].isspace() for line in rows for start in starts)


def test_the_whole_table_is_no_wider_than_a_wide_terminal() -> None:
    assert max(map(len, report.table(FULL).splitlines())) <= 160


def test_each_scenario_is_a_group_with_a_heading_for_each_size() -> None:
    lines = report.table(FULL).splitlines()
    first = lines.index("bulk download, 1 stream")
    assert lines[first - 1] == ""
    assert lines[first + 1].startswith("  CPU, s/GB")
    assert lines[first + 2].startswith("  throughput, MB/s")
    assert lines[first + 3] == "bulk download, 32 streams"
    assert "grow: 10,000 connections" in lines
    assert "grow: 1 worker" in lines


def test_targets_follow_with_what_became_of_them() -> None:
    text = report.table(FULL)
    _, _, verdicts = text.partition("\ntargets")
    assert "small request: CPU" in verdicts
    assert verdicts.count("met") == len(targets.TARGETS)


def test_results_of_nobody_but_handfast_have_no_ratios() -> None:
    text = report.table(measured.only(FULL, lambda row: row.system == "handfast"))
    assert "/nginx" not in text
    assert "not measured" in text


def test_results_without_handfast_have_no_ratios_either() -> None:
    text = report.table(measured.only(FULL, lambda row: row.system != "handfast"))
    assert "/nginx" not in text.splitlines()[0]


def test_nothing_measured_is_still_a_table() -> None:
    assert "not measured" in report.table(results())
    assert "not measured" in report.summary(results())


def test_the_summary_has_a_well_formed_table_for_each_scenario() -> None:
    text = report.summary(FULL)
    for scenario in {each.scenario for each in FULL.rows}:
        assert f"### {scenario[0].upper()}{scenario[1:]}\n" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            lines = block.splitlines()
            assert len({line.count("|") for line in lines}) == 1
            assert set(lines[1]) <= set("| -")


def test_the_summary_tells_targets_and_conditions() -> None:
    text = report.summary(FULL)
    assert "### Targets" in text
    assert "- kernel: 6.1" in text


def test_text_with_bars_and_line_ends_stays_in_its_cell() -> None:
    odd = Row("a|b\nc", "handfast", "CPU", "us", rounds=[1.0])
    text = report.summary(Results({}, [odd, Row("a|b\nc", "x|y", "CPU", "us", why="p|q\nr")]))
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables[0].splitlines()} == {4}


def test_a_target_is_missed_by_a_percentage() -> None:
    target = targets.Target("s", "f", 0.8, "nginx")
    assert targets.Verdict(target, 0.8).words == "met"
    assert targets.Verdict(target, 0.92).words == "missed by 15 %"
    assert targets.Verdict(target, None).words == "not measured"


def test_a_target_below_a_bound_is_missed_at_the_bound() -> None:
    target = targets.Target("s", "f", 1.0, "nginx", below=True)
    assert targets.Verdict(target, 0.99).met
    assert targets.Verdict(target, 1.0).met is False
    assert targets.Verdict(target, 1.0).words == "missed by 0 %"


def test_a_target_without_a_peer_is_in_the_unit_of_the_figure() -> None:
    memory = Row("whole installation, two workers", "handfast", "memory", "MB", rounds=[66.0])
    verdict = next(each for each in targets.judge(results(memory)) if each.got is not None)
    assert verdict.met is False
    assert verdict.words == "missed by 10 %"
    assert "<= 60 MB" in report.table(results(memory))
