"""Where a configuration names a file, for mistakes that are found inside that file."""

from __future__ import annotations

import os
from collections.abc import Iterator

from handfast.config.document import Kind, Value, read
from handfast.errors import Problem


def locate(problem: Problem, text: str, *, base: str = "") -> Problem:
    """Point a problem at the value of the configuration that names what it is about.

    The message of such a problem starts with the name of a file (or of an environment variable)
    and a colon. `text` has been parsed without a mistake. What is not found stays as it is.
    """
    about = problem.message.partition(": ")[0].split(", ")[0]
    for value in _texts(read(text, base).root):
        if about in (value.text, os.path.join(base, value.text)):  # noqa: PTH118  text, text out
            return value.problem(problem.message)
    return problem


def _texts(value: Value) -> Iterator[Value]:
    if value.kind is Kind.TEXT:
        yield value
    for below in (*value.items, *value.entries.values()):
        yield from _texts(below)
