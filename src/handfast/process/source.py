"""Where a configuration comes from, so that it can be read again."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from handfast.config import Config
from handfast.errors import ConfigError


def _as_it_is(error: ConfigError) -> ConfigError:
    return error


class Source(msgspec.Struct, frozen=True):
    """A configuration's name for people, and how it is read.

    `load` raises ConfigError, which names the file and the line. `locate` does that for mistakes
    that show in the files which the configuration names. `file` is what to watch, if anything, and
    `content` gives what is in it now (raises ConfigError).
    """

    name: str
    load: Callable[[], Config]
    locate: Callable[[ConfigError], ConfigError] = _as_it_is
    file: str | None = None
    content: Callable[[], bytes] = bytes
