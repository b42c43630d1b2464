"""Where a configuration has what a mistake is about that shows later: in a file, say."""

from __future__ import annotations

import os
from collections.abc import Iterator

from handfast.config.document import Kind, Value, read
from handfast.errors import Problem


def locate(problem: Problem, text: str, *, base: str = "") -> Problem:
    """Point a problem at the value of the configuration that it is about.

    Its message starts with the name of a file (or of an environment variable) that the value has,
    and a colon; or its path is known, or stands there instead. `text` has been parsed without a
    mistake. What is not found stays as it is.
    """
    if problem.line:
        return problem
    about = problem.message.partition(": ")[0].split(", ")[0]
    values = [*_values(read(text, base).root)]
    for value in values:
        if value.kind is Kind.TEXT and about in (value.text, os.path.join(base, value.text)):  # noqa: PTH118  text, text out
            return value.problem(problem.message)
    for value in values:
        if value.path and value.path in (problem.path, about):
            return value.problem(problem.message.removeprefix(f"{value.path}: "))
    return problem


def _values(value: Value) -> Iterator[Value]:
    yield value
    for below in (*value.items, *value.entries.values()):
        yield from _values(below)
