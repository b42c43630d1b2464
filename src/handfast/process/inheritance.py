"""What a supervisor leaves to the program that takes its place, by execve(2), in the same process.

Descriptors stay open across it, under their numbers, and children stay children. What they are is
written into a sealed memfd, whose number is in the environment. Until the new program serves and
the old processes have gone, it closes none of these descriptors: should it not come up, the program
before takes its place again, by the same memfd (see `upgrade`).

Programs of two versions read this, so it is MessagePack of named fields: a version leaves out what
it does not know, and what it misses has a default. What could not be understood like that needs a
new format, which is that of the hand-over messages (`handover.message`).
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, MutableMapping
from pathlib import Path
from typing import Final

import msgspec

from handfast.errors import HandfastError
from handfast.handover.message import FORMAT, READS
from handfast.observe.counters import Counts
from handfast.observe.status import Reloads
from handfast.process.child import Kind
from handfast.process.messages import Pid
from handfast.process.sealed import seal, unseal
from handfast.transport.census import Shared

INHERITANCE: Final = "HANDFAST_INHERITANCE"
"""The environment variable with the number of the memfd."""
_UNIX: Final = "unix:"
_DIGITS: Final = 9


class Program(msgspec.Struct, frozen=True):
    """A handfast on this machine: the version that runs, its interpreter, and its arguments."""

    version: str
    python: str
    arguments: tuple[str, ...]


class Socket(msgspec.Struct, frozen=True):
    """A listening socket: of the listener of this name and address, which has a number.

    `place` tells those apart that have both in common. `given` says that the service manager made
    it.
    """

    name: str
    address: str
    place: int
    number: int
    descriptor: int
    given: bool = False


class Place(msgspec.Struct, frozen=True):
    """A descriptor and what it belongs to: a path, or an address."""

    name: str
    descriptor: int


class Relative(msgspec.Struct, frozen=True):
    """A process that runs. `control` is our end of its control pair, -1 without one.

    `started` is by CLOCK_MONOTONIC. `parent` and `column` are as in `Child`.
    """

    kind: Kind
    number: int
    pid: Pid
    control: int
    started: float = 0.0
    parent: Pid = 0
    column: int = -1


class Waiter(msgspec.Struct, frozen=True):
    """Who waits at the control socket for an answer to this command."""

    descriptor: int
    command: str


class Inheritance(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. `program` leaves it, `successor` is to have it, since `began` (CLOCK_MONOTONIC).

    `numbers` is the next listener's number and `generation` the last generation's. `channels` are
    the relays' channels of sessions: sender, receiver. `counts` are of processes that have ended.
    `environment` is what the service manager had said. `configuration` is what was in its file when
    the successor was proved by it.
    """

    format: int = FORMAT
    program: Program
    successor: Program
    began: float
    started: float
    listeners: tuple[Socket, ...] = ()
    spare: tuple[Place, ...] = ()
    numbers: int = 0
    generation: int = 0
    control: Place | None = None
    pidfile: Place | None = None
    metrics: Place | None = None
    demo: int = -1
    channels: tuple[tuple[int, int], ...] = ()
    relatives: tuple[Relative, ...] = ()
    waiters: tuple[Waiter, ...] = ()
    counts: Counts = msgspec.field(default_factory=Counts)
    reloads: Reloads = Reloads()
    environment: dict[str, str] = {}
    configuration: bytes = b""
    census: Shared | None = None

    def drop_places(self, used: Container[str | None]) -> None:
        """Close what is elsewhere now: control socket, pidfile, metrics. Their files go, too."""
        for place in (self.control, self.pidfile, self.metrics):
            if place is None or place.name in used:
                continue
            os.close(place.descriptor)
            if place is not self.metrics or place.name.startswith(_UNIX):
                Path(place.name.removeprefix(_UNIX)).unlink(missing_ok=True)

    def descriptors(self) -> Iterator[int]:
        """Give every descriptor in it."""
        yield from (each.descriptor for each in self.listeners)
        yield from (each.descriptor for each in self.spare)
        places = (self.control, self.pidfile, self.metrics)
        yield from (each.descriptor for each in places if each is not None)
        yield from (end for pair in self.channels for end in pair)
        yield from (each.control for each in self.relatives if each.control >= 0)
        yield from (each.descriptor for each in self.waiters)
        if self.demo >= 0:
            yield self.demo
        if self.census is not None:
            yield self.census.descriptor


class _Format(msgspec.Struct):
    format: int


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Inheritance)
_formats: Final = msgspec.msgpack.Decoder(_Format)


def leave(inheritance: Inheritance) -> int:
    """Put it into a sealed memfd, and give its descriptor."""
    return seal("inheritance", _encoder.encode(inheritance))


def read(descriptor: int) -> Inheritance:
    """Read what `leave` wrote, in this version or the one before; raises HandfastError."""
    try:
        data = unseal(descriptor)
        found = _formats.decode(data).format
        if found not in READS:
            raise HandfastError(
                f"the running handfast hands over in format {found}, and this one reads "
                f"{' and '.join(map(str, READS))}: stop the one and start the other"
            )
        return _decoder.decode(data)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HandfastError(f"what the program before left cannot be read: {error}") from None


def claim(environment: MutableMapping[str, str]) -> int:
    """Give the descriptor of the memfd that the environment names; -1 for none.

    The variable is removed: children are no part of this.
    """
    return number(environment.pop(INHERITANCE, ""))


def number(text: str) -> int:
    """Read the number of a descriptor; -1 for what is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS else -1


def keep_to_ourselves(inheritance: Inheritance) -> None:
    """Let no program that is run from here have the descriptors. Raises HandfastError."""
    _inherit(inheritance, inheritable=False)


def pass_on(inheritance: Inheritance) -> None:
    """Let the program that takes our place have the descriptors. Raises HandfastError."""
    _inherit(inheritance, inheritable=True)


def _inherit(inheritance: Inheritance, *, inheritable: bool) -> None:
    try:
        for descriptor in inheritance.descriptors():
            os.set_inheritable(descriptor, inheritable)
    except OSError as error:
        raise HandfastError(f"a descriptor to be inherited is not open: {error}") from None
