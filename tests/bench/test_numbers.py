"""The numbers of `bench.costs`: what is a step up, what is told of it, what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import costs, numbers
from bench.numbers import Counts, Numbers, compare, merged, report

NAME = "user space, relay: system calls per small request"
VERSIONS = {"Python": "3.11.7"}


def failures(number: float, count: float) -> tuple[str, ...]:
    return compare(Numbers(VERSIONS, {NAME: number}), Numbers(VERSIONS, {NAME: count})).failures


def hints(number: float, count: float) -> tuple[str, ...]:
    return compare(Numbers(VERSIONS, {NAME: number}), Numbers(VERSIONS, {NAME: count})).hints


@pytest.mark.parametrize(("number", "count"), [(6, 6), (100, 110), (100, 90), (0.1, 0.12), (0, 0)])
def test_what_is_within_ten_percent_passes_without_a_word(number: float, count: float) -> None:
    assert not failures(number, count)
    assert not hints(number, count)


@pytest.mark.parametrize(("number", "count"), [(6, 7), (100, 111), (2, 3), (0, 1), (4540, 5000)])
def test_a_step_up_fails(number: float, count: float) -> None:
    assert failures(number, count)


def test_a_failure_tells_what_and_by_how_much() -> None:
    assert failures(6, 7) == (f"{NAME}: 7 instead of 6 (+17%)",)


def test_a_step_down_is_a_hint() -> None:
    assert hints(6, 5) == (f"{NAME}: only 5 instead of 6 (-17%)",)
    assert not failures(6, 5)


def test_a_count_without_a_number_fails() -> None:
    found = Numbers(VERSIONS, {NAME: 6})

    (failure,) = compare(Numbers(VERSIONS, {}), found).failures

    assert "there is no number" in failure


def test_a_number_without_a_count_fails_unless_it_cannot_be_counted_here() -> None:
    known = Numbers(VERSIONS, {NAME: 6, "kernel TLS, relay: calls per MiB up": 9})

    (failure,) = compare(known, Numbers(VERSIONS, {}), missing=("kernel TLS",)).failures

    assert failure == f"{NAME}: was not counted, but has a number"


def test_new_numbers_keep_those_that_could_not_be_counted() -> None:
    old = Numbers(
        {"Python": "3.11.2", "Linux": "6.1"},
        {NAME: 6, "user space, gone": 1, "kernel TLS, relay": 9},
    )

    new = merged(old, Numbers(VERSIONS, {NAME: 7}), missing=("kernel TLS",))

    assert new.counts == {NAME: 7, "kernel TLS, relay": 9}
    assert new.versions == {"Python": "3.11.7", "Linux": "6.1"}


def test_the_report_tells_how_to_take_new_numbers_and_what_else_may_be_the_reason() -> None:
    known, found = Numbers({"Python": "3.11.2"}, {NAME: 6}), Numbers(VERSIONS, {NAME: 7})

    text = report(compare(known, found), known, found)

    assert f"{NAME}: 7 instead of 6" in text
    assert "python -m bench.costs --write" in text
    assert "counted with Python 3.11.2, this with 3.11.7" in text


def test_numbers_are_read_as_they_were_written(tmp_path: Path) -> None:
    some = Numbers(VERSIONS, {NAME: 6, "a mean": 0.25})

    (tmp_path / "costs.json").write_text(numbers.text_of(some))

    assert numbers.load(tmp_path / "costs.json") == some


def test_the_check_fails_when_the_numbers_are_lower_and_passes_once_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = {name: n for name, n in numbers.load().counts.items() if name.startswith("user")}
    monkeypatch.setattr(costs, "count_all", lambda home, times: counted)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    file = tmp_path / "costs.json"
    lower: Counts = {name: number * 0.85 for name, number in counted.items()}
    file.write_text(numbers.text_of(Numbers(VERSIONS, lower)))
    check = ["--numbers", str(file)]

    assert costs.main(check) == 1
    told = capsys.readouterr().err
    assert told.count(" instead of ") == len(counted)
    assert "--write" in told

    assert costs.main([*check, "--write"]) == 0
    assert costs.main(check) == 0
