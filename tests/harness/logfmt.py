"""A reference reader of logfmt, written from the grammar and not from the writer."""

from __future__ import annotations

import json
import re

_PAIR = re.compile(r'([a-z_]+)=(?:("(?:[^"\\\x00-\x1f]|\\.)*")|([^\s"=\\]*))(?: |$)')


def parse(line: bytes) -> dict[str, str]:
    """Read one physical line; raise ValueError if any of it is not `key=value`."""
    if not line.endswith(b"\n"):
        raise ValueError("no newline at the end")
    text = line[:-1].decode("utf-8")
    if len(text.splitlines()) != 1:
        raise ValueError("not one line")
    pairs: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = _PAIR.match(text, at)
        if match is None or match[1] in pairs:
            raise ValueError(f"not logfmt at {text[at:]!r}")
        pairs[match[1]] = json.loads(match[2]) if match[2] else match[3]
        at = match.end()
    return pairs
