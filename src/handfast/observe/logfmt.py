r"""Events as logfmt lines: `key=value key="value with \"escapes\""`.

Whatever a peer sends must come back out of a parser exactly, and must never start a line of its
own. So a value is written bare only if all of it is in a small set of ASCII characters; any other
value is written as a JSON string in ASCII, which is also the quoting that logfmt parsers expect.
A byte that is not UTF-8 is carried as a lone surrogate (PEP 383) and shows as `\udc80` to `\udcff`.

Limits: a value has at most `VALUE_MAX` characters, a line at most `LINE_MAX` bytes, the atomic
write to a pipe. A longer value keeps its head and ends in `…+N`, N being the number of characters
that were cut. A line in which that happened ends in `truncated=M`: its values of more than M
characters are those that were cut, so that nobody can forge the mark.

Speed: msgspec writes the fields as JSON, and one regular expression tells whether every value may
be written bare, in which case a pass or three in C turn the JSON into logfmt. Values that need
quotes and no escapes are set aside meanwhile. A line of 19 fields takes 3 us that way, 5 us with a
quoted value; field by field in Python it takes 9 to 11 us.
"""

from __future__ import annotations

import json
import math
import re
import time
from typing import Final

import msgspec

from handfast.observe.events import Event

VALUE_MAX: Final = 256
LINE_MAX: Final = 4096

# Each is tried in turn until the line fits; the last one always does (the tests prove it).
_LIMITS: Final = (VALUE_MAX, 128, 64, 32, 16, 8)

# No comma and no brace: _fast takes these for JSON's.
_BARE: Final = r"[-+./:@_%~*0-9A-Za-z]"
_is_bare: Final = re.compile(rf"{_BARE}+").fullmatch

# The input is JSON already, so it is enough to look at the strings, keys and values alike, and to
# see that what stands between them is a number, true or false: neither null nor a nested value.
_is_plain: Final = re.compile(
    rf'\{{(?:"{_BARE}{{1,{VALUE_MAX}}}+"[-+:,0-9.aeflrstu]*+)*+\}}'.encode()
).fullmatch
# The same, with strings that need quotes but no escapes.
_is_printable: Final = re.compile(
    rf'\{{(?:"[ !#-\[\]-~]{{1,{VALUE_MAX}}}+"[-+:,0-9.aeflrstu]*+)*+\}}'.encode()
).fullmatch
# A value that needs quotes. Only where a key ends does a letter come before `":"`.
_quoted: Final = re.compile(rf'":"(?<=[a-z_]":")({_BARE}*+[^"]++)"'.encode())
_ASIDE: Final = b"\0"  # stands for such a value; JSON has no NUL of its own
_TO_LOGFMT: Final = bytes.maketrans(b",:", b" =")
_COMMA_TO_SPACE: Final = bytes.maketrans(b",", b" ")
_to_json: Final = msgspec.json.Encoder().encode


def text(raw: bytes) -> str:
    """Give bytes from a peer as text that keeps every byte, valid UTF-8 or not (PEP 383)."""
    return raw.decode("utf-8", "surrogateescape")


def value(given: str | float, limit: int = VALUE_MAX) -> str:
    """Write one value, of which at most `limit` characters are kept."""
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, float) and math.isfinite(given):
        return _to_json(given).decode()  # 1e16, as in the JSON of a whole event
    if not isinstance(given, str):
        return str(given)
    kept = f"{given[:limit]}…+{len(given) - limit}" if len(given) > limit else given
    if _is_bare(kept):
        return kept
    return json.dumps(kept).replace("\x7f", "\\u007f")


def body(event: Event, room: int = LINE_MAX) -> bytes:
    """Write the fields of an event in at most `room` bytes, `key=value` parted by spaces."""
    try:
        raw = _to_json(event)
    except (UnicodeEncodeError, OverflowError):  # not UTF-8; an integer of more than 64 bits
        return _spelled(event, room)
    if len(raw) > room:
        return _spelled(event, room)
    if _is_plain(raw) is not None:
        return _bare(raw)
    if _is_printable(raw) is None:
        return _spelled(event, room)
    fields = _bare(_quoted.sub(b'":"\0"', raw))
    for each in _quoted.findall(raw):
        fields = fields.replace(_ASIDE, b'"%b"' % each, 1)
    return fields


def _bare(raw: bytes) -> bytes:
    """Turn the JSON of an event into logfmt; nothing in its values looks like JSON."""
    if raw.count(b":") == raw.count(b",") + 1:  # no colon but those between key and value
        return raw.translate(_TO_LOGFMT, b'"{}')
    # First the colon of text, then that of numbers: a text may begin with a colon (`::1`).
    return raw.replace(b'":"', b"=").replace(b'":', b"=").translate(_COMMA_TO_SPACE, b'"{}')


def _spelled(event: Event, room: int) -> bytes:
    """Write any event, field by field, with the highest limit that lets it fit."""
    given = msgspec.structs.asdict(event)
    present = {key: v for key, v in given.items() if v is not None and v != ""}
    longest = max((len(v) for v in present.values() if isinstance(v, str)), default=0)
    line = ""
    for limit in _LIMITS:
        pairs = [f"{key}={value(v, limit)}" for key, v in present.items()]
        if longest > limit:
            pairs.append(f"truncated={limit}")
        line = " ".join(pairs)
        if len(line) <= room:
            break
    return line.encode("ascii")


class Stamp:
    """RFC 3339 time with milliseconds and the local offset; all but those once per second."""

    __slots__ = ("_head", "_second", "_tail")

    def __init__(self) -> None:
        self._second = -1
        self._head = self._tail = b""

    def at(self, now: float) -> bytes:
        """Write `timestamp=...` for `now`, in seconds since the epoch."""
        second = int(now)
        if second != self._second:
            self._begin(second)
        return b"%b%03d%b" % (self._head, (now - second) * 1000, self._tail)

    def _begin(self, second: int) -> None:
        local = time.localtime(second)
        sign, offset = ("-", -local.tm_gmtoff) if local.tm_gmtoff < 0 else ("+", local.tm_gmtoff)
        self._second = second
        self._head = time.strftime("timestamp=%Y-%m-%dT%H:%M:%S.", local).encode("ascii")
        self._tail = f"{sign}{offset // 3600:02d}:{offset % 3600 // 60:02d}".encode("ascii")


class Writer:
    """Turn the events of one process into whole lines."""

    __slots__ = ("_common", "_heads", "_stamp")

    def __init__(self, *, process_type: str, pid: int, worker_id: str = "") -> None:
        worker = f" worker_id={value(worker_id)}" if worker_id else ""
        self._common = f" service=handfast process_type={value(process_type)}{worker} pid={pid}"
        self._heads: dict[tuple[type[Event], int], bytes] = {}
        self._stamp = Stamp()

    def line(self, event: Event, now: float) -> bytes:
        """Write `event`, which happened at `now` (seconds since the epoch), as one line."""
        kind = (type(event), event.level)
        head = self._heads.get(kind) or self._head(event)
        start = self._stamp.at(now) + head
        fields = body(event, LINE_MAX - len(start) - 2)
        return b"%b %b\n" % (start, fields) if fields else start + b"\n"

    def _head(self, event: Event) -> bytes:
        level = event.level
        head = f"{self._common} level={level.name} event={event.NAME}".encode("ascii")
        self._heads[type(event), level] = head
        return head
