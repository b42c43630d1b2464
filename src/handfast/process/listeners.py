"""The listening sockets, which outlive the generations that use them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeAlias

from msgspec.structs import replace

from handfast.config import Address, Config, Listener, TcpAddress, UnixAddress
from handfast.errors import HandfastError
from handfast.process.inheritance import Inheritance, Place, Socket
from handfast.process.listening import Bound, bind

_UNIX: Final = "unix:"
_Key: TypeAlias = tuple[str, str, int]


class Listeners:
    """Every socket that any generation listens on, by the listener's name and address.

    A listener keeps its socket and its number as long as both stay the same, and clients that wait
    in the kernel's queue notice nothing of a reload.
    """

    def __init__(self, claim: Callable[[Address], socket.socket | None]) -> None:
        """`claim` gives the socket of the service manager's for an address, if there is one."""
        self._claim = claim
        self._spare: dict[str, socket.socket] = {}
        self._bound: dict[_Key, Bound] = {}
        self._inherited: dict[_Key, Socket] = {}
        self._held: dict[int, socket.socket] = {}  # a socket closes its descriptor when it goes
        self._numbers = 0

    def inherit(self, inheritance: Inheritance) -> None:
        """Take over the sockets of the program before, for listeners that are still configured.

        None of them is closed before `drop_inherited`: that program may have to come back. One
        without a descriptor (-1) has its number, and is claimed or bound.
        """
        self._inherited = {
            (each.name, each.address, each.place): each for each in inheritance.listeners
        }
        descriptors = (each.descriptor for each in inheritance.listeners)
        self._held = {each: _socket(each) for each in descriptors if each >= 0}
        self._spare = {each.name: _socket(each.descriptor) for each in inheritance.spare}
        self._numbers = inheritance.numbers

    def bequeath(self) -> tuple[tuple[Socket, ...], tuple[Place, ...], int]:
        """Give all sockets for the program that follows, those in use and others, and `numbers`."""
        bound = tuple(
            Socket(*key, each.number, each.sock.fileno(), each.given)
            for key, each in self._bound.items()
        )
        # Where this program has not come up, they are its own no more than before.
        bound += tuple(each for key, each in self._inherited.items() if key not in self._bound)
        spare = tuple(Place(name, sock.fileno()) for name, sock in self._spare.items())
        return bound, spare, self._numbers

    def entrust(self) -> None:
        """Treat every socket as one that the service manager holds: it goes on listening."""
        self._bound = {key: replace(each, given=True) for key, each in self._bound.items()}

    def drop_inherited(self) -> None:
        """Close the sockets of the program before that no listener uses."""
        inherited, self._inherited = self._inherited, {}
        held, self._held = self._held, {}
        for key, each in inherited.items():
            if key in self._bound or each.descriptor < 0:
                continue
            if each.given and each.address not in self._spare:
                self._spare[each.address] = held[each.descriptor]
                continue
            held[each.descriptor].close()
            if each.address.startswith(_UNIX) and not each.given and not self._uses(each.address):
                Path(each.address.removeprefix(_UNIX)).unlink(missing_ok=True)

    def _uses(self, address: str) -> bool:
        return any(str(each.listener.address) == address for each in self._bound.values())

    def open(self, config: Config) -> tuple[Bound, ...]:
        """Give a configuration's sockets, binding those that are new.

        Raises HandfastError when one cannot be bound, and leaves none of the new ones behind.
        """
        found: dict[_Key, Bound] = {}
        try:
            for listener in config.listeners:
                key = _key(listener, found)
                there = self._bound.get(key)
                found[key] = (
                    replace(there, listener=listener) if there else self._make(key, listener)
                )
        except HandfastError:
            old = self._bound.keys() | self._inherited.keys()
            self._close(each for key, each in found.items() if key not in old)
            raise
        self._bound |= found
        return tuple(found.values())

    def _make(self, key: _Key, listener: Listener) -> Bound:
        inherited = self._inherited.get(key)
        if inherited is None:
            return self._bind(listener)
        if inherited.descriptor < 0:
            address = listener.address
            given = self._spare.pop(str(address), None) or self._claim(address)
            return bind(listener, inherited.number, given)
        made = bind(listener, inherited.number, self._held[inherited.descriptor])
        return replace(made, given=inherited.given)

    def _bind(self, listener: Listener) -> Bound:
        address, number = listener.address, self._numbers
        self._numbers += 1
        for each in self._inherited.values():
            usable = each.descriptor >= 0 and not _is_any_port(address)
            if usable and each.address == str(address):
                sock = self._held[each.descriptor].dup()
                return replace(bind(listener, number, sock), given=each.given)
        holder = self._holder(address)
        if holder is not None:  # one of another name, which this one replaces
            return replace(bind(listener, number, holder.sock.dup()), given=holder.given)
        return bind(listener, number, self._spare.pop(str(address), None) or self._claim(address))

    def _holder(self, address: Address) -> Bound | None:
        if _is_any_port(address):
            return None
        return next(
            (each for each in self._bound.values() if each.listener.address == address), None
        )

    def keep(self, *generations: tuple[Bound, ...]) -> None:
        """Close the sockets that none of these generations uses."""
        kept = {each.number for bound in generations for each in bound}
        ended = [each for each in self._bound.values() if each.number not in kept]
        self._bound = {key: each for key, each in self._bound.items() if each.number in kept}
        self._close(ended)

    def close(self) -> None:
        """Close every socket."""
        self.drop_inherited()
        self.keep()
        for sock in self._spare.values():
            sock.close()
        self._spare.clear()

    def _close(self, bound: Iterable[Bound]) -> None:
        for each in bound:
            address = each.listener.address
            if each.given and str(address) not in self._spare:
                # The service manager holds it too: it could not be bound anew, if wanted again.
                self._spare[str(address)] = each.sock
                continue
            each.sock.close()
            if each.given or self._holder(address) is not None:
                continue
            if isinstance(address, UnixAddress):
                Path(address.path).unlink(missing_ok=True)


def _key(listener: Listener, taken: dict[_Key, Bound]) -> _Key:
    """Tell listeners apart; those of one name on port 0 by their order."""
    place = 0
    while (key := (listener.name, str(listener.address), place)) in taken:
        place += 1
    return key


def _is_any_port(address: Address) -> bool:
    return isinstance(address, TcpAddress) and not address.port


def _socket(descriptor: int) -> socket.socket:
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
