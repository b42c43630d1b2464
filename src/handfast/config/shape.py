"""What a mapping or list may hold: parsers by key, rules between keys, checks between values.

Every mistake is collected: a parser that fails does not stop the next one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from msgspec import Struct

from handfast.config.document import Kind, Value, below
from handfast.config.scalars import AnyParser, Parser, expected
from handfast.errors import ConfigError, Problem

T = TypeVar("T")
Rule = Callable[[Value], Iterable[Problem]]
Check = Callable[[Value, Mapping[str, Any]], Iterable[Problem]]


class Shape(Struct, frozen=True, kw_only=True):
    """A mapping's keys with their parsers, its rules, and advice for keys that belong elsewhere.

    The checks get what the parsers found, so they run when nothing else is wrong.
    """

    fields: Mapping[str, AnyParser]
    rules: tuple[Rule, ...] = ()
    checks: tuple[Check, ...] = ()
    elsewhere: Mapping[str, str] = {}

    def read(self, value: Value) -> dict[str, Any]:
        """Parse the keys that are present; raises ConfigError with every mistake."""
        if value.kind is not Kind.MAPPING:
            raise expected(value, f"a mapping with keys such as `{next(iter(self.fields))}`")
        found: dict[str, Any] = {}
        problems = [problem for rule in self.rules for problem in rule(value)]
        for key, child in value.entries.items():
            if parser := self.fields.get(key):
                found.update(_attempt(key, parser, child, problems))
            else:
                problems.append(child.problem(self._unknown(key)))
        if problems or len(found) < len(value.entries):
            raise ConfigError(*problems)
        if problems := [problem for check in self.checks for problem in check(value, found)]:
            raise ConfigError(*problems)
        return found

    def _unknown(self, key: str) -> str:
        if advice := self.elsewhere.get(key):
            return advice
        likely = difflib.get_close_matches(key[:40], self.fields, 1)
        hint = f"; did you mean `{likely[0]}`?" if likely else ""
        return f"unknown key{hint or '; the keys are ' + ', '.join(self.fields)}"


def list_of(parser: Parser[T], *, least: int = 1, most: int = 1000) -> Parser[tuple[T, ...]]:
    """Take a list, each item by the same parser."""

    def parse(value: Value) -> tuple[T, ...]:
        if value.kind is not Kind.LIST:
            raise expected(value, "a list (lines that begin with -)")
        problems: list[Problem] = []
        if not least <= len(value.items) <= most:
            amount = str(most) if least == most else f"from {least} to {most}"
            message = f"expected {amount} in the list, got {len(value.items)}"
            problems.append(value.problem(message))
        found: dict[int, T] = {}
        for index, item in enumerate(value.items):
            found.update(_attempt(index, parser, item, problems))
        if problems or len(found) < len(value.items):
            raise ConfigError(*problems)
        return tuple(found.values())

    return parse


def one_or_many(parser: Parser[T]) -> Parser[tuple[T, ...]]:
    """Take a list, or a single item for a list of one."""
    many = list_of(parser)

    def parse(value: Value) -> tuple[T, ...]:
        return many(value) if value.kind is Kind.LIST else (parser(value),)

    return parse


def required(key: str, remedy: str) -> Rule:
    """Demand a key."""

    def rule(value: Value) -> Iterable[Problem]:
        if key not in value.entries:
            yield missing(value, key, f"is missing; write {remedy}")

    return rule


def either(first: str, second: str, remedy: str) -> Rule:
    """Demand one of two keys; that both are not given together is `excludes`."""

    def rule(value: Value) -> Iterable[Problem]:
        if first not in value.entries and second not in value.entries:
            yield missing(value, first, f"is missing, and so is `{second}`; write {remedy}")

    return rule


def excludes(key: str, *others: str) -> Rule:
    """Refuse any of the others beside a key."""

    def rule(value: Value) -> Iterable[Problem]:
        for other in others:
            if key in value.entries and other in value.entries:
                message = f"cannot be used together with `{key}`; remove one of them"
                yield value.entries[other].problem(message)

    return rule


def needs(key: str, *others: str) -> Rule:
    """Refuse a key that is beside none of the others."""

    def rule(value: Value) -> Iterable[Problem]:
        if key in value.entries and not any(other in value.entries for other in others):
            wanted = " or ".join(f"`{other}`" for other in others)
            message = f"has no meaning without {wanted}; add one or remove it"
            yield value.entries[key].problem(message)

    return rule


def keywords(found: Mapping[str, Any]) -> dict[str, Any]:
    """Give what was found under the names of the structs' fields."""
    return {key.replace("-", "_"): item for key, item in found.items()}


def missing(value: Value, key: str, message: str) -> Problem:
    """Give a problem with a key that is not there."""
    return Problem(message, below(value.path, key), value.line)


def _attempt(key: Any, parser: Parser[T], value: Value, problems: list[Problem]) -> dict[Any, T]:
    """Parse one value, into a mapping of one; of none when it is wrong, its problems noted.

    A broken value has been reported where it was read.
    """
    if value.kind is Kind.BROKEN:
        return {}
    try:
        return {key: parser(value)}
    except ConfigError as error:
        problems.extend(error.problems)
        return {}
