"""What changed between two runs is judged by ratios, and with the spread in mind."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import comparison
from bench.comparison import Verdict, compare
from bench.figures import Better, Results, Row
from harness import measured

COMPARE = Path(comparison.__file__).parent / "compare"


def run(better: Better = "lower", **rounds: list[float]) -> Results:
    rows = [
        Row("small request", system, "CPU", "us", better, None, numbers, "" if numbers else "no")
        for system, numbers in rounds.items()
    ]
    return Results({}, rows)


def verdicts(before: Results, after: Results) -> dict[str, Verdict]:
    figures = compare(before, after).figures
    return {change.peer: change.verdict for figure in figures for change in figure.changes}


STEADY = run(handfast=[10.0, 10.1, 9.9], nginx=[10.0, 10.1, 9.9])


def test_a_run_beside_itself_changed_nothing() -> None:
    whole = measured.results()
    found = compare(whole, whole)
    assert {figure.verdict for figure in found.figures} == {Verdict.NOISE}
    assert not found.only_before
    assert not found.only_after
    assert found.worst() == 0


def test_more_of_what_should_be_low_is_worse() -> None:
    slower = run(handfast=[12.0, 12.1, 11.9], nginx=[10.0, 10.1, 9.9])
    assert verdicts(STEADY, slower) == {"nginx": Verdict.WORSE}
    assert verdicts(slower, STEADY) == {"nginx": Verdict.BETTER}
    assert compare(STEADY, slower).worst() == pytest.approx(0.2)
    assert compare(slower, STEADY).worst() == 0


def test_more_of_what_should_be_high_is_better() -> None:
    before = run("higher", handfast=[10.0, 10.1], nginx=[10.0, 10.1])
    after = run("higher", handfast=[12.0, 12.1], nginx=[10.0, 10.1])
    assert verdicts(before, after) == {"nginx": Verdict.BETTER}
    assert verdicts(after, before) == {"nginx": Verdict.WORSE}


def test_another_machine_on_which_all_are_slower_changes_nothing() -> None:
    machine = run(handfast=[20.0, 20.2, 19.8], nginx=[20.0, 20.2, 19.8])
    assert verdicts(STEADY, machine) == {"nginx": Verdict.NOISE}


def test_ranges_that_overlap_are_noise_however_far_the_medians_are_apart() -> None:
    wild = run(handfast=[9.9, 15.0, 16.0], nginx=[10.0, 10.0, 10.0])
    assert verdicts(STEADY, wild) == {"nginx": Verdict.NOISE}
    assert compare(STEADY, wild).worst() == 0


def test_a_mood_that_both_systems_share_in_a_round_is_no_spread() -> None:
    before = run(handfast=[10.0, 20.0], nginx=[10.0, 20.0])
    after = run(handfast=[12.0, 24.0], nginx=[10.0, 20.0])
    assert verdicts(before, after) == {"nginx": Verdict.WORSE}


def test_systems_with_different_numbers_of_rounds_are_compared_at_their_extremes() -> None:
    before = run(handfast=[10.0], nginx=[8.0, 10.0, 12.0])
    after = run(handfast=[12.0], nginx=[8.0, 10.0, 12.0])
    assert verdicts(before, after) == {"nginx": Verdict.NOISE}


def test_less_than_a_percent_is_never_worth_a_word() -> None:
    before, after = run(handfast=[10.0], nginx=[10.0]), run(handfast=[10.05], nginx=[10.0])
    assert verdicts(before, after) == {"nginx": Verdict.NOISE}


def test_a_figure_is_judged_by_the_worst_that_it_is_beside_any_peer() -> None:
    before = run(handfast=[10.0], nginx=[10.0], hitch=[10.0])
    after = run(handfast=[10.0], nginx=[5.0], hitch=[20.0])
    (figure,) = compare(before, after).figures
    assert figure.verdict is Verdict.WORSE
    assert figure.harm == 1


def test_without_a_ratio_handfast_is_compared_with_itself() -> None:
    before = run(handfast=[50.0], nginx=[])
    assert verdicts(before, run(handfast=[60.0], nginx=[])) == {"itself": Verdict.WORSE}


def test_failures_where_there_were_none_are_worse_without_a_percentage() -> None:
    before, after = run(handfast=[0], nginx=[0]), run(handfast=[5], nginx=[0])
    assert verdicts(before, after) == {"itself": Verdict.WORSE}
    assert compare(before, after).worst() == float("inf")
    assert "from 0" in comparison.text(compare(before, after), before, after)


def test_how_busy_the_core_was_is_nobodys_merit() -> None:
    busy = Row("small request", "handfast", "busy", "share", rounds=[0.5])
    before = Results({}, [busy, replace(busy, system="nginx")])
    after = Results({}, [replace(busy, rounds=[0.9]), replace(busy, system="nginx")])
    assert compare(before, after).figures == []


def test_what_only_one_run_has_is_listed() -> None:
    before = run(handfast=[1.0], nginx=[1.0], hitch=[1.0])
    after = run(handfast=[1.0], nginx=[1.0], stunnel=[1.0], hitch=[])
    found = compare(before, after)
    key = ("small request", "CPU", None)
    assert found.only_before == [(key, "hitch")]
    assert found.only_after == [(key, "stunnel")]
    text = comparison.text(found, before, after)
    assert "only before: 1\n  small request: CPU: hitch" in text
    assert "only after: 1\n  small request: CPU: stunnel" in text


def test_the_worst_comes_first_and_noise_last() -> None:
    def one(scenario: str, ours: float) -> list[Row]:
        row = Row(scenario, "handfast", "CPU", "us", rounds=[ours])
        return [row, replace(row, system="nginx", rounds=[10.0])]

    before = Results({}, [*one("a", 10), *one("b", 10), *one("c", 10), *one("d", 10)])
    after = Results({}, [*one("a", 10), *one("b", 5), *one("c", 11), *one("d", 15)])
    order = [figure.key[0] for figure in compare(before, after).figures]
    assert order == ["d", "c", "b", "a"]
    text = comparison.text(compare(before, after), before, after)
    assert text.index("worse: 2") < text.index("better: 1") < text.index("within noise: 1")


def test_conditions_that_differ_are_told() -> None:
    before, after = Results({"kernel": "6.1"}, []), Results({"kernel": "6.2", "new": 1}, [])
    text = comparison.text(compare(before, after), before, after)
    assert "kernel: 6.1 -> 6.2" in text
    assert "new: - -> 1" in text


def test_rows_are_aligned_and_no_wider_than_a_wide_terminal() -> None:
    whole, slower = measured.results(), measured.results(seed=2, faster=1.2)
    lines = comparison.text(compare(whole, slower), whole, slower).splitlines()
    head = next(line for line in lines if line.startswith("handfast beside"))
    rows = [line.ljust(len(head)) for line in lines if " -> " in line and "%" in line]
    for peer in ("nginx", "hitch", "haproxy", "stunnel", "itself"):
        start = head.index(peer)
        assert all(line[start - 2 : start].isspace() and line[start] != " " for line in rows)
    assert max(map(len, lines)) <= 180


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(COMPARE), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    STEADY.save(before)
    run(handfast=[12.0, 12.1, 11.9], nginx=[10.0, 10.1, 9.9]).save(after)
    return before, after


def test_the_program_can_be_run_as_it_is(files: tuple[Path, Path]) -> None:
    done = subprocess.run(
        [str(COMPARE), *map(str, files)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "1.00 -> 1.20 +20% !" in done.stdout


@pytest.mark.parametrize(("percent", "code"), [("0", 1), ("19.9", 1), ("20.1", 0), ("inf", 0)])
def test_it_fails_above_a_percentage(files: tuple[Path, Path], percent: str, code: int) -> None:
    assert program(*files, "--fail-above", percent).returncode == code


def test_it_does_not_fail_for_what_became_better(files: tuple[Path, Path]) -> None:
    before, after = files
    assert program(after, before, "--fail-above", "0").returncode == 0


@pytest.mark.parametrize("percent", ["-1", "nan", "much", ""])
def test_a_percentage_that_is_none_is_wrong_usage(files: tuple[Path, Path], percent: str) -> None:
    done = program(*files, f"--fail-above={percent}")
    assert done.returncode == 2
    assert "--fail-above" in done.stderr


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 9}', None])
def test_a_wrong_file_is_named(
    files: tuple[Path, Path], tmp_path: Path, content: str | None
) -> None:
    wrong = tmp_path / "wrong.json"
    if content is not None:
        wrong.write_text(content)
    done = program(files[0], wrong)
    assert done.returncode == 2
    assert str(wrong) in done.stderr
    assert "Traceback" not in done.stderr
