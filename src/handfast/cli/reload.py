"""`handfast reload`."""

from __future__ import annotations

import argparse

from handfast.cli.loading import control_of
from handfast.errors import ConfigError, HandfastError
from handfast.process.commands import Request, ask


def run(options: argparse.Namespace) -> int:
    """Have it take up what was changed; when that is refused, nothing has changed."""
    answer = ask(control_of(options), Request("reload"))
    if answer.error and answer.wrong_configuration:
        raise ConfigError(*answer.error.splitlines())
    if answer.error:
        raise HandfastError(answer.error)
    return 0
