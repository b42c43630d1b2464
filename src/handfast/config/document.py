"""YAML text as a tree of values that know where they stand.

The text may be hostile, so it is read event by event and refused as soon as it is too long, too
deep or too large. Anchors and aliases are refused because they make a small text a huge document
(the "billion laughs"); tags are refused because they name types that no key here has. What is
wrong with one value does not hide what is wrong with the next: it becomes BROKEN, and its problem
is collected.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, Final

import yaml
from msgspec import Struct

from handfast.errors import ConfigError, Problem

MAX_TEXT: Final = 1 << 20  # characters
MAX_DEPTH: Final = 20
MAX_VALUES: Final = 50_000
EMPTY: Final = (
    "the configuration is empty; write at least one entry under `listeners:`, "
    "with `listen`, `certificates` and `target`"
)
# Control characters, and what is left of bytes that are not UTF-8.
UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
_DECIMAL: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})")
# PyYAML quotes what it met, which may be part of a password; token names in <> are kept.
_QUOTED_INPUT: Final = re.compile(r""" (?:'[^'<>,\[\]{}:-]+'|"[^"]*")""")


class Kind(Enum):
    """What a value is, in the words that an error uses for it."""

    NULL = "nothing"
    BOOLEAN = "the boolean"
    INTEGER = "the integer"
    NUMBER = "the number"
    TEXT = "the text"
    LIST = "a list"
    MAPPING = "a mapping"
    BROKEN = "a refused value"


_KINDS: Final = {
    "tag:yaml.org,2002:null": Kind.NULL,
    "tag:yaml.org,2002:bool": Kind.BOOLEAN,
    "tag:yaml.org,2002:int": Kind.INTEGER,
    "tag:yaml.org,2002:float": Kind.NUMBER,
}


class Value(Struct, frozen=True, kw_only=True):
    """One value, its path and line (from 1; 0 is none), and the directory its file names start at.

    `text` is a scalar as it was written, `items` a list's values, `entries` a mapping's.
    """

    kind: Kind
    path: str = ""
    line: int = 0
    base: str = ""
    text: str = ""
    items: tuple[Value, ...] = ()
    entries: dict[str, Value] = {}

    def problem(self, message: str) -> Problem:
        """Give a problem that points here."""
        return Problem(message, self.path, self.line)


class Document(Struct, frozen=True, kw_only=True):
    """The root value, and what is wrong with the text whatever the keys mean."""

    root: Value
    problems: tuple[Problem, ...]


def shown(text: str) -> str:
    """Quote text for an error, on one line and short."""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def below(path: str, key: str) -> str:
    """Give the path of a mapping's key; one that is no plain word becomes `?`.

    `servkeypass:secret`, with the space forgotten, is such a key.
    """
    name = key if _PLAIN_KEY.fullmatch(key) else "?"
    return f"{path}.{name}" if path else name


def read(text: str, base: str = "") -> Document:
    """Read one YAML document; raises ConfigError when its structure cannot be followed.

    Bytes that are not UTF-8 are expected as the file was decoded with `surrogateescape`.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(f"the configuration has {len(text)} characters; the limit is {MAX_TEXT}")
    try:
        return _Composer(text, base).document()
    except yaml.reader.ReaderError as error:
        raise ConfigError(_unreadable(text, error)) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_malformed(text, error)) from None
    except (ValueError, OverflowError):
        # PyYAML converts "\UFFFFFFFF" and the numbers of %YAML without checking them.
        raise ConfigError("not YAML: an escape or directive has a number out of range") from None


class _Composer:
    """Builds values from YAML events, and collects problems on the way."""

    def __init__(self, text: str, base: str) -> None:
        self._loader: Any = yaml.SafeLoader(text)  # its methods have no types
        self._base = base
        self._problems: list[Problem] = []
        self._count = 0

    def document(self) -> Document:
        self._loader.get_event()
        if self._loader.check_event(yaml.StreamEndEvent):
            raise ConfigError(EMPTY)
        self._loader.get_event()
        root = self._value("", 0, 1)
        self._loader.get_event()
        if not self._loader.check_event(yaml.StreamEndEvent):
            line = _line(self._loader.peek_event())
            raise ConfigError(Problem("a second document starts here; keep one", line=line))
        return Document(root=root, problems=tuple(self._problems))

    def _value(self, path: str, line: int, depth: int) -> Value:
        """Compose the next value; `line` is its key's, 0 for its own."""
        event = self._loader.get_event()
        line = line or _line(event)
        self._stay_within_limits(depth, line)
        usable = self._accepts(event, path, line)
        value = Value(kind=Kind.BROKEN, path=path, line=line, base=self._base)
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(value, event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._list(value, depth)
        elif isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(value, depth)
        return value if usable else _derive(value, Kind.BROKEN)

    def _stay_within_limits(self, depth: int, line: int) -> None:
        self._count += 1
        if depth > MAX_DEPTH:
            raise ConfigError(Problem(f"nested deeper than {MAX_DEPTH} levels", line=line))
        if self._count > MAX_VALUES:
            raise ConfigError(Problem(f"more than {MAX_VALUES} values", line=line))

    def _accepts(self, event: yaml.Event, path: str, line: int) -> bool:
        """Tell whether the value may be used; aliases, anchors and tags are problems."""
        message = ""
        if isinstance(event, yaml.AliasEvent):
            message = "an alias (*) is not allowed; write the value again, or quote the text"
        elif getattr(event, "anchor", None) is not None:
            message = "an anchor (&) is not allowed; remove it, or quote the text"
        elif getattr(event, "tag", None) is not None:
            message = "a tag (!) is not allowed; remove it, or quote the text"
        if message:
            self._problems.append(Problem(message, path, line))
        return not message

    def _scalar(self, value: Value, event: yaml.ScalarEvent) -> Value:
        kind = Kind.TEXT
        if event.style is None:
            tag = self._loader.resolve(yaml.ScalarNode, event.value, (True, False))
            kind = _KINDS.get(str(tag), Kind.TEXT)
        if kind is Kind.INTEGER and not _DECIMAL.fullmatch(event.value):
            kind = Kind.NUMBER  # octal, hexadecimal, 1_000 or 1:30, which people read differently
        return _derive(value, kind, text=event.value)

    def _list(self, value: Value, depth: int) -> Value:
        items: list[Value] = []
        while not self._loader.check_event(yaml.SequenceEndEvent):
            items.append(self._value(f"{value.path}[{len(items)}]", 0, depth + 1))
        self._loader.get_event()
        return _derive(value, Kind.LIST, items=tuple(items))

    def _mapping(self, value: Value, depth: int) -> Value:
        entries: dict[str, Value] = {}
        while not self._loader.check_event(yaml.MappingEndEvent):
            key = self._value(value.path, 0, depth + 1)
            child = self._value(below(value.path, key.text), key.line, depth + 1)
            if key.kind in {Kind.LIST, Kind.MAPPING}:
                self._problems.append(key.problem("a key is a list or a mapping; write a name"))
            elif key.kind is Kind.BROKEN:
                pass  # it already has its problem
            elif (first := entries.get(key.text)) is not None:
                self._problems.append(child.problem(f"given twice, first on line {first.line}"))
            else:
                entries[key.text] = child
        self._loader.get_event()
        return _derive(value, Kind.MAPPING, entries=entries)


def _derive(
    value: Value,
    kind: Kind,
    *,
    text: str = "",
    items: tuple[Value, ...] = (),
    entries: dict[str, Value] | None = None,
) -> Value:
    return Value(
        kind=kind,
        path=value.path,
        line=value.line,
        base=value.base,
        text=text,
        items=items,
        entries=entries or {},
    )


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return mark.line + 1 if mark else 0


def _unreadable(text: str, error: yaml.reader.ReaderError) -> Problem:
    """Say which character PyYAML refuses; `position` is its index in the text."""
    code = ord(text[error.position])
    line = text.count("\n", 0, error.position) + 1
    if 0xDC80 <= code <= 0xDCFF:
        return Problem(f"byte 0x{code - 0xDC00:02x} is not UTF-8; save the file as UTF-8", "", line)
    return Problem(f"character U+{code:04X} is not allowed in YAML; remove it", "", line)


def _malformed(text: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 0
    message = f"not YAML: {_QUOTED_INPUT.sub('', error.problem or error.context or 'malformed')}"
    if mark and "]:" in "".join(text.splitlines()[mark.line : mark.line + 1]):
        message += "; put quotes around an address that begins with ["
    return Problem(message, line=line)
