"""A handfast whose configuration is a mapping, which a test changes while it runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from harness.instance import Instance

Settings = dict[str, Any]


class _Plain(yaml.SafeDumper):
    """Writes what is in two places twice: the configuration has no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def write(file: Path, settings: Settings) -> None:
    """Write a configuration, in one step: nobody ever reads half of it."""
    new = file.with_suffix(".new")
    new.write_text(yaml.dump(settings, Dumper=_Plain, sort_keys=False))
    new.replace(file)


class Front(Instance):
    """An Instance that is started with `settings`, which are the configuration in full.

    A test changes them in place, and then lets handfast know.
    """

    def __init__(self, file: Path, settings: Settings, **options: Any) -> None:
        self.settings = settings
        write(file, settings)
        super().__init__(file, **options)

    @property
    def listener(self) -> Settings:
        """The settings of the first listener."""
        first: Settings = self.settings["listeners"][0]
        return first

    def save(self) -> None:
        """Write the settings as they are now."""
        write(self.config, self.settings)

    def reload(self) -> subprocess.CompletedProcess[str]:
        """Write the settings, and run `handfast reload`."""
        self.save()
        return self.command("reload")

    def reloaded(self, **changes: object) -> None:
        """Change the first listener (`client_auth` is client-auth), and reload successfully."""
        self.listener.update(dashed(changes))
        done = self.reload()
        assert done.returncode == 0, done.stderr

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        os.kill(self.process.pid, number)


def dashed(settings: Settings) -> Settings:
    """Spell keys as the configuration does: `send_proxy` is send-proxy."""
    return {key.replace("_", "-"): value for key, value in settings.items()}
