"""A client, a man in the middle, and a server of three confined processes: all on one stage.

Run it as `python examples/sandboxed_server`. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys

import columns
import show
from handfast.cli import DONE, FAILED, WRONG_USAGE
from handfast.errors import ConfigError, HandfastError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sandboxed_server",
        description="Send a secret through a man in the middle to a server of three processes.",
        allow_abbrev=False,
    )
    parser.add_argument("--clear", action="store_true", help="the same without TLS")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--serve", metavar="PORT", type=_port, help="the server alone, until Ctrl-C; 0 is any port"
    )
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 1 << 16:
        raise ValueError(text)
    return port


def main(arguments: list[str]) -> int:
    """Do what the arguments say; give the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.json and options.serve is not None:
        parser.error("--json is not for --serve")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.serve is not None:
            show.serve(clear=options.clear, port=options.serve)
        return _play(clear=options.clear, as_json=options.json)
    except KeyboardInterrupt:
        return DONE if options.serve is not None else FAILED
    except (HandfastError, OSError) as error:
        print(f"sandboxed_server: {error}", file=sys.stderr)
        return WRONG_USAGE if isinstance(error, ConfigError) else FAILED


def _play(*, clear: bool, as_json: bool) -> int:
    seen = show.play(clear=clear)
    if as_json:
        print(json.dumps(show.as_json(seen), indent=2))
    else:
        for part in (columns.side_by_side, columns.table, columns.summary):
            print(*part(seen), sep="\n", end="\n\n" if part is columns.table else "\n")
    return DONE if seen.succeeded() else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
