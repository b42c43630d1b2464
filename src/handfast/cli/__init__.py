"""The command `handfast`. One module per command, imported only when that command runs.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import Final

from handfast import __version__
from handfast.errors import ConfigError, HandfastError

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2

_DEFAULT: Final = "without FILE: the embedded default"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="handfast",
        description="Terminate TLS for plain TCP services.",
        epilog="`handfast serve` without a file starts a demo and prints a curl line to try.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"handfast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve = _command(commands, "serve", "serve in the foreground, or as a daemon")
    serve.add_argument(
        "--daemon", action="store_true", help="go to the background when everything serves"
    )
    one = serve.add_argument_group("one listener, in place of a file")
    one.add_argument("--listen", metavar="ADDRESS", help="HOST:PORT, [IPv6]:PORT, :PORT, unix:PATH")
    one.add_argument("--target", metavar="TARGET", help="tcp://HOST:PORT or unix:PATH")
    one.add_argument("--cert", metavar="FILE", help="certificate chain, PEM, leaf first")
    one.add_argument("--key", metavar="FILE", help="its private key, PEM")
    check = _command(commands, "check", "check a configuration and the files it names")
    check.add_argument(
        "--effective", action="store_true", help="print the configuration after defaults"
    )
    explain = check.add_argument_group("who may connect")
    explain.add_argument(
        "--explain", metavar="CERT", help="tell what becomes of a client with it: PEM, leaf first"
    )
    explain.add_argument("--listener", metavar="NAME", help="ask this listener only")
    explain.add_argument("--json", action="store_true", help="explain for programs")
    status = _command(commands, "status", "show the processes and counters of a running handfast")
    status.add_argument("--json", action="store_true", help="for programs")
    status.add_argument(
        "--watch", action="store_true", help="show it every second, with rates, until Ctrl-C"
    )
    _command(commands, "reload", "have a running handfast read its configuration and files again")
    upgrade = _command(
        commands, "upgrade", "have the installed version take over, with all connections"
    )
    upgrade.add_argument("--python", metavar="PATH", help="the interpreter of another installation")
    upgrade.add_argument("--json", action="store_true", help="for programs")
    rebalance = _command(commands, "rebalance", "even out the connections of the relays")
    rebalance.add_argument("--json", action="store_true", help="for programs")
    _command(commands, "stop", "drain and stop a running handfast, and wait for it")
    commands.add_parser("version", help="print the version", allow_abbrev=False)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.add_argument("-c", "--config", metavar="FILE", help=f"configuration ({_DEFAULT})")
    return command


def main(arguments: list[str] | None = None) -> int:
    """Run one command; give the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "version":
        print(f"handfast {__version__}")  # noqa: T201 - what the command is for
        return DONE
    try:
        code: int = import_module(f"handfast.cli.{options.command}").run(options)
    except ConfigError as error:
        for problem in error.problems:
            _complain(str(problem))
        return WRONG_USAGE
    except HandfastError as error:
        _complain(str(error))
        return FAILED
    except BrokenPipeError:
        # What is left to write must not fail once more at the end of the interpreter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    return code


def _complain(text: str) -> None:
    print(f"handfast: {text}", file=sys.stderr)  # noqa: T201 - what the user is to read
