"""handfast installed a second time, in a version of its own: an interpreter with another handfast.

A virtual environment with a copy of the package, as pip would leave it; what handfast depends on
comes from where the tests run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

import handfast

SOURCE: Final = Path(handfast.__file__).parent


class Installation:
    """An installation in `directory`, whose files a test may change."""

    def __init__(self, directory: Path, version: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(directory)],
            check=True,
        )
        self.python = directory / "bin" / "python"
        self.version = version
        major, minor = sys.version_info[:2]
        self._site = directory / "lib" / f"python{major}.{minor}" / "site-packages"
        (self._site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.package = self._site / "handfast"
        shutil.copytree(SOURCE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        self.become(version)

    def become(self, version: str) -> None:
        """Install another version over this one: the files as they are at their source."""
        shutil.rmtree(self.package)
        shutil.copytree(SOURCE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        self.version = version
        self.change("__init__.py", r'__version__ = ".*"', f'__version__ = "{version}"')
        for old in self._site.glob("handfast-*.dist-info"):
            shutil.rmtree(old)
        about = self._site / f"handfast-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: handfast\nVersion: {version}\n"
        )

    def change(self, file: str, old: str, new: str) -> None:
        """Replace what a regular expression finds in one of the package's files."""
        path = self.package / file
        text, count = re.subn(old, new, path.read_text(), flags=re.MULTILINE)
        assert count == 1, f"{count} places in {file} are like {old}"
        path.write_text(text)
