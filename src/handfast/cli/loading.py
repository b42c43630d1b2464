"""From the command line's options to a configuration."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from handfast import config
from handfast.config import Config
from handfast.errors import ConfigError, Problem
from handfast.process.commands import control_path

_MAX_FILE = 1 << 20


def load(path: str) -> Config:
    """Read and parse a configuration file; every problem names the file."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return config.parse(_text(data), base=str(Path(path).parent), cores=usable_cores())
    except ConfigError as error:
        raise ConfigError(*(_named(path, each) for each in error.problems)) from None


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(Problem("not UTF-8; save the file as UTF-8", line=line)) from None


def _named(path: str, problem: Problem) -> str:
    return f"{path}: {problem}"


def usable_cores() -> int:
    """Give the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def control_of(options: argparse.Namespace) -> Path:
    """Find the control socket of the instance that the options name."""
    if options.config is None:
        return control_path(None)
    path = load(options.config).control
    return Path(path) if path else control_path(options.config)
