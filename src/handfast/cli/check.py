"""`handfast check`."""

from __future__ import annotations

import argparse
import datetime
import sys

from handfast import config
from handfast.cli.loading import load, naming
from handfast.errors import ConfigError
from handfast.process.credentials import load_all
from handfast.tls.certificates import facts, validity


def run(options: argparse.Namespace) -> int:
    """Parse the file, and load what it names as serving would."""
    if options.config is None:
        raise ConfigError("check needs a file: handfast check -c FILE")
    parsed = load(options.config)
    with naming(options.config):
        loaded = load_all(parsed)
    if options.effective:
        sys.stdout.write(config.effective(parsed))
        return 0
    now = datetime.datetime.now(datetime.UTC)
    for listener, each in zip(parsed.listeners, loaded, strict=True):
        leaf = each.credential.chain[0]
        note = validity(leaf, now) or f"expires {facts(leaf).not_after}"
        sys.stdout.write(
            f"{listener.address} -> {listener.target}  {facts(leaf).subject}, {note}\n"
        )
    sys.stdout.write(f"{options.config}: ok\n")
    return 0
