"""`handfast check`."""

from __future__ import annotations

import argparse
import datetime
import sys

from handfast import config
from handfast.cli import DONE
from handfast.cli.explain import explain
from handfast.cli.loading import load, naming
from handfast.config import Listener, Service
from handfast.errors import ConfigError
from handfast.process.credentials import Files, Loaded, load_all
from handfast.tls.certificates import facts, validity


def run(options: argparse.Namespace) -> int:
    """Parse the file, and load what it names as serving would."""
    if options.config is None:
        raise ConfigError("check needs a file: handfast check -c FILE")
    if options.explain is None and (options.listener is not None or options.json):
        raise ConfigError("--listener and --json go with --explain")
    parsed = load(options.config)
    now = datetime.datetime.now(datetime.UTC)
    with naming(options.config):
        files = load_all(parsed, now)
    if options.explain is not None:
        return explain(parsed, files, options.explain, options.listener, as_json=options.json)
    if options.effective:
        sys.stdout.write(config.effective(parsed))
        return DONE
    sys.stdout.write(_report(parsed, files, now))
    sys.stdout.write(f"{options.config}: ok\n")
    return DONE


def _report(parsed: config.Config, files: Files, now: datetime.datetime) -> str:
    pairs = zip(parsed.listeners, files.listeners, strict=True)
    lines = (line for listener, loaded in pairs for line in _about(listener, loaded, now))
    return "".join(f"{line}\n" for line in lines)


def _about(listener: Listener, loaded: Loaded, now: datetime.datetime) -> list[str]:
    """Describe a listener: where its clients go, by route, then what is to know of its files."""
    where = [_line(listener, "", listener.service)] if listener.service is not None else []
    where += [
        _line(listener, f" {', '.join((*route.sni, *route.alpn))}", route.service)
        for route in listener.routes
    ]
    notes = []
    for credential in loaded.credentials:
        leaf = credential.chain[0]
        note = validity(leaf, now) or f"expires {facts(leaf).not_after}"
        notes.append(f"{facts(leaf).subject}, {note}")
    if notes and where:
        where[0] += f"  {notes.pop(0)}"
    return [*where, *(f"  {note}" for note in notes), *(f"  warning: {w}" for w in loaded.warnings)]


def _line(listener: Listener, condition: str, service: Service) -> str:
    targets = ", ".join(str(target.address) for target in service.targets)
    return f"{listener.address}{condition} -> {targets}"
