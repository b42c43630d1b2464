"""The page about the log names all that can be in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest

from handfast.accept.admission import Refusal
from handfast.observe.events import Event, Level

PAGE = (Path(__file__).parents[3] / "docs" / "logging.md").read_text()
EVENTS = sorted(Event.__subclasses__(), key=lambda each: each.NAME)


def section(title: str) -> str:
    """Give the text under a heading, up to the next one of the same or a higher level."""
    found = re.search(
        rf"^(##+) {re.escape(title)}\n(.*?)(?=^##+ |\Z)", PAGE, re.MULTILINE | re.DOTALL
    )
    assert found, f"docs/logging.md has no heading {title!r}"
    return found[2]


def is_named(word: str, text: str) -> bool:
    """Tell whether a field or a value is named, by itself or as part of `field=value`."""
    return re.search(rf"`(?:[^`]*[ =])?{re.escape(word)}(?:[= ][^`]*)?`", text) is not None


def values(hint: object) -> tuple[str, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


@pytest.mark.parametrize("event", EVENTS, ids=lambda each: each.NAME)
def test_every_event_has_a_section_with_all_fields_values_and_an_example(
    event: type[Event],
) -> None:
    text = section(event.NAME)

    hints = get_type_hints(event)
    fields = [each.name for each in msgspec.structs.fields(event)]
    words = [*fields, *(value for field in fields for value in values(hints[field]))]
    assert [each for each in words if not is_named(each, text)] == []
    assert f" event={event.NAME}" in text


def test_every_section_is_about_an_event() -> None:
    titles = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)

    assert sorted(titles) == [each.NAME for each in EVENTS]


def test_every_level_is_explained() -> None:
    assert [each.name for each in Level if f"| `{each.name}` |" not in section("Levels")] == []


def test_every_limit_is_explained() -> None:
    assert [each.value for each in Refusal if not is_named(each.value, section("refused"))] == []


def test_every_reason_of_our_own_is_explained() -> None:
    source = Path(__file__).parents[3] / "src" / "handfast"
    code = "".join(each.read_text() for name in ("accept", "tls", "policy")
                   for each in sorted((source / name).glob("*.py")))  # fmt: skip
    reasons = set(re.findall(r'token="(\w+)"|Decision\(\s*False, "(\w+)"', code))

    text = section("auth")
    assert [
        each for pair in sorted(reasons) for each in pair if each and not is_named(each, text)
    ] == []


def test_the_examples_begin_with_the_fields_of_every_line() -> None:
    order = re.findall(r"^\| `(\w+)` \|", section("Every line"), re.MULTILINE)
    order.remove("truncated")
    order.remove("worker_id")
    examples = re.findall(r"^timestamp=.*$", PAGE, re.MULTILINE)

    for line in examples:
        found = re.findall(r"(?:^| )(\w+)=", line.split(" event=")[0] + " event=")
        assert [each for each in found if each != "worker_id"] == order
