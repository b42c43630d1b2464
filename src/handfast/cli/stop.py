"""`handfast stop`."""

from __future__ import annotations

import argparse

from handfast.cli.loading import control_of
from handfast.errors import HandfastError
from handfast.process.commands import Request, ask


def run(options: argparse.Namespace) -> int:
    """Have it drain and end, and wait for that."""
    answer = ask(control_of(options), Request("stop"), wait=True)
    if answer.error:
        raise HandfastError(answer.error)
    return 0
