"""What is stowed with the service manager while handfast is started again: its form.

A memfd that is sealed at the end has, one behind the other,

- a packet for each connection: the hand-over message as a relay wrote it, what goes beside it, and
  which descriptors belong to it, each by the device and inode of fstat(2), for the manager gives
  descriptors back in any order;
- the manifest: everything else, as MessagePack of named fields;
- the footer: a magic number, and where the manifest is.

Packets have the secrets of sessions. Nobody here decodes one: they are bytes between two relays,
and are read from the memfd when their turn comes, so that no process that is forked before has any.

Whoever may write to the manager's store has every right over the service already. All the same,
what comes from there is hostile until it is parsed: it may be of another version, or damaged.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

import msgspec

from handfast.errors import HandfastError
from handfast.handover.message import FORMAT, MAX_BULK, MAX_MESSAGE, READS
from handfast.observe.counters import Counts
from handfast.observe.status import Reloads
from handfast.process.inheritance import Program

Identity: TypeAlias = tuple[int, int]
"""An open file: its device and inode."""

MOST_DESCRIPTORS: Final = 2
"""Of one packet: the client's socket, and the target's. The bulk is within it."""
_HEAD: Final = struct.Struct("!IIB")  # bytes of the message, bytes of the bulk + 1, descriptors
_IDENTITY: Final = struct.Struct("!QQ")
_FOOTER: Final = struct.Struct("!8sQI")
_MAGIC: Final = b"handfast"
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Door(msgspec.Struct, frozen=True):
    """A listening socket, as `inheritance.Socket`; `identity` is None for the manager's own."""

    name: str
    address: str
    place: int
    number: int
    identity: Identity | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All but the connections, of which there are so many `packets`; see `Inheritance`."""

    format: int = FORMAT
    program: Program
    began: float
    started: float
    doors: tuple[Door, ...] = ()
    numbers: int = 0
    generation: int = 0
    packets: int = 0
    counts: Counts = msgspec.field(default_factory=Counts)
    reloads: Reloads = Reloads()


class Packet(msgspec.Struct, frozen=True):
    """A connection: where its message and its bulk are (its `more` bytes but one; 0 for none)."""

    start: int
    size: int
    more: int
    identities: tuple[Identity, ...]


class _Format(msgspec.Struct):
    format: int


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Manifest)
_formats: Final = msgspec.msgpack.Decoder(_Format)


def identify(descriptor: int) -> Identity:
    """Tell which open file a descriptor is of. Raises OSError."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def is_bulk(descriptor: int) -> bool:
    """Tell whether a descriptor that came with a packet is its bulk: that is a memfd."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


class Stowage:
    """The memfd while it is written. Raises OSError when there is no room for it."""

    def __init__(self) -> None:
        self.count = 0
        self._descriptor = os.memfd_create("stowage", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._size = 0

    def add(
        self, message: memoryview, bulk: memoryview | None, identities: Sequence[Identity]
    ) -> None:
        """Write a connection; one that has no room leaves no trace."""
        size = 0 if bulk is None else len(bulk) + 1
        head = _HEAD.pack(len(message), size, len(identities))
        marks = b"".join(_IDENTITY.pack(*each) for each in identities)
        self._write((head, marks, message, *(() if bulk is None else (bulk,))))
        self.count += 1

    def _write(self, pieces: Sequence[bytes | memoryview]) -> None:
        position = self._size
        for piece in pieces:
            view = memoryview(piece)
            while view:
                written = os.pwrite(self._descriptor, view, position)
                view, position = view[written:], position + written
        self._size = position

    def seal(self, manifest: Manifest) -> int:
        """Write the rest, and give the descriptor, which is the caller's: nothing can follow."""
        data = _encoder.encode(manifest)
        self._write((data, _FOOTER.pack(_MAGIC, self._size, len(data))))
        os.ftruncate(self._descriptor, self._size)
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        """Give up what was written, unless it was sealed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Unstowed:
    """What `Stowage` wrote, in this version or the one before. `descriptor` is its own from now on.

    Raises HandfastError, and closes it then. What it has checked cannot change: it is sealed.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        try:
            if ~fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS:
                raise HandfastError("what was stowed is not sealed")
            self.manifest, self._end = self._read_manifest(os.fstat(descriptor).st_size)
            self.packets = list(self._read_packets())
        except (OSError, struct.error) as error:
            self.close()
            raise HandfastError(f"what was stowed cannot be read: {error}") from None
        except HandfastError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it: nobody can read it any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def message(self, packet: Packet) -> bytearray:
        """Read a connection's message, which has secrets: to be wiped."""
        return self._read(packet.start, packet.size)

    def bulk(self, packet: Packet) -> bytearray | None:
        """Read what goes beside it; traffic, to be wiped too."""
        if not packet.more:
            return None
        return self._read(packet.start + packet.size, packet.more - 1)

    def _read(self, start: int, size: int) -> bytearray:
        data = bytearray(size)
        if os.preadv(self._descriptor, [data], start) != size:
            raise HandfastError("what was stowed is cut short")
        return data

    def _read_manifest(self, length: int) -> tuple[Manifest, int]:
        if length < _FOOTER.size:
            raise HandfastError("what was stowed is too short")
        magic, start, size = _FOOTER.unpack(self._read(length - _FOOTER.size, _FOOTER.size))
        if magic != _MAGIC or start + size + _FOOTER.size != length:
            raise HandfastError("what was stowed is damaged at its end")
        body = self._read(start, size)
        try:
            found = _formats.decode(body).format
            if found not in READS:
                raise HandfastError(
                    f"what was stowed is of format {found}, and this version reads "
                    f"{' and '.join(map(str, READS))}"
                )
            return _decoder.decode(body), start
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HandfastError(f"what was stowed is damaged: {error}") from None

    def _read_packets(self) -> Iterator[Packet]:
        position = count = 0
        while position < self._end:
            packet = self._read_packet(position)
            yield packet
            position = packet.start + packet.size + max(0, packet.more - 1)
            count += 1
        if position != self._end or count != self.manifest.packets:
            raise HandfastError(f"{self.manifest.packets} connections were stowed, not {count}")

    def _read_packet(self, position: int) -> Packet:
        size, more, count = _HEAD.unpack(self._read(position, _HEAD.size))
        if not 0 < count <= MOST_DESCRIPTORS or size > MAX_MESSAGE or more > MAX_BULK + 1:
            raise HandfastError("a stowed connection is not of the right size")
        marks = self._read(position + _HEAD.size, count * _IDENTITY.size)
        identities = tuple((device, inode) for device, inode in _IDENTITY.iter_unpack(marks))
        return Packet(position + _HEAD.size + len(marks), size, more, identities)
