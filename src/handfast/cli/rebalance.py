"""`handfast rebalance`."""

from __future__ import annotations

import argparse
import json

from handfast.cli.loading import control_of
from handfast.errors import HandfastError
from handfast.process.commands import Request, ask


def run(options: argparse.Namespace) -> int:
    """Even out the connections of the relays, and tell how many went to another."""
    answer = ask(control_of(options), Request("rebalance"))
    if answer.error:
        raise HandfastError(answer.error)
    moved = answer.moved or 0
    if options.json:
        print(json.dumps({"moved": moved}))  # noqa: T201 - what the command is for
    else:
        print(f"{moved} connection{'' if moved == 1 else 's'} moved")  # noqa: T201
    return 0
