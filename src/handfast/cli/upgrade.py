"""`handfast upgrade`."""

from __future__ import annotations

import argparse
import os
import shutil

import msgspec

from handfast.cli.loading import control_of
from handfast.errors import ConfigError, HandfastError
from handfast.process.commands import Request, Upgraded, ask


def run(options: argparse.Namespace) -> int:
    """Have the installed version take the place of the one that runs, and tell how that went."""
    python = _interpreter(options.python) if options.python else ""
    answer = ask(control_of(options), Request("upgrade", python))
    if answer.error and answer.wrong_configuration:
        raise ConfigError(*answer.error.splitlines())
    if answer.error:
        raise HandfastError(answer.error)
    upgraded = answer.upgraded
    if upgraded is None:
        raise HandfastError("the upgrade was not answered; look at its log")
    if options.json:
        print(msgspec.json.encode(upgraded).decode())  # noqa: T201 - what the command is for
    else:
        print(describe(upgraded))  # noqa: T201
    return 0


def _interpreter(name: str) -> str:
    """Find an interpreter by its path, or by its name as the shell does; raises ConfigError.

    The path stays as it is: behind the symbolic link of a virtual environment is another's.
    """
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"--python: {name} is no program that can be run; name an interpreter")
    return os.path.abspath(found)  # noqa: PTH100 - not resolved


def describe(upgraded: Upgraded) -> str:
    """Say in words what came of it."""
    count = upgraded.moved
    course = f"upgraded from {upgraded.before} to {upgraded.after} in {upgraded.seconds:.1f} s"
    lines = [f"{course}: {count} connection{'' if count == 1 else 's'} moved"]
    if count:
        lines.append(
            f"the longest stood still for {upgraded.longest_stall * 1000:.1f} ms, "
            f"99 of 100 for less than {upgraded.p99_stall * 1000:g} ms"
        )
    if upgraded.waiting:
        lines.append(f"{upgraded.waiting} wait for descriptors: raise LimitNOFILE")
    lines += [f"on the way, {each}, and its connections are lost" for each in upgraded.died]
    return "\n".join(lines)
