"""From the command line's options to a configuration."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from handfast import config
from handfast.config import Config
from handfast.errors import ConfigError, Problem
from handfast.process.commands import control_path

_MAX_FILE = 1 << 20
_CONTROL = re.compile(
    r"^control:[ \t]+(?P<quote>['\"]?)(?P<path>.+?)(?P=quote)[ \t]*(?:[ \t]#.*)?$", re.MULTILINE
)


def load(path: str, content: bytes | None = None) -> Config:
    """Parse a configuration file, or what it contained; every problem names the file."""
    text = _read(path) if content is None else _decode(content)
    try:
        return config.parse(text, base=_base(path), cores=usable_cores())
    except ConfigError as error:
        raise _named(path, error.problems) from None


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Name the configuration and its line in a ConfigError about a file that it names."""
    try:
        yield
    except ConfigError as error:
        raise located(path, error) from None


def located(path: str, error: ConfigError) -> ConfigError:
    """Name the configuration, and its line for a mistake in a file that it names."""
    if any(str(each).startswith(f"{path}: ") for each in error.problems):
        return error  # it is named already
    try:
        text = _read(path)
    except ConfigError:
        return error  # it has gone meanwhile
    return _named(path, (config.locate(each, text, base=_base(path)) for each in error.problems))


def _named(path: str, problems: Iterable[Problem]) -> ConfigError:
    return ConfigError(*(f"{path}: {each}" for each in problems))


def _base(path: str) -> str:
    return str(Path(path).parent)


def _read(path: str) -> str:
    return _decode(content_of(path))


def _decode(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def content_of(path: str) -> bytes:
    """Read a configuration file as it is; raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def usable_cores() -> int:
    """Give the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def control_of(options: argparse.Namespace) -> Path:
    """Find the control socket of the instance that the options name.

    It is found for a file that has become wrong, too: who runs by it can still be asked.
    """
    if options.config is None:
        return control_path(None)
    try:
        path = load(options.config).control
    except ConfigError:
        found = _control_of_broken(options.config)
        if found.exists():
            return found
        raise
    return Path(path) if path else control_path(options.config)


def _control_of_broken(path: str) -> Path:
    """Look for `control:` in a file that cannot be parsed."""
    try:
        named = _CONTROL.search(_read(path))
    except ConfigError:
        return control_path(path)
    return Path(_base(path), named["path"]) if named else control_path(path)
