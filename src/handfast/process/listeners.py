"""The listening sockets, which outlive the generations that use them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from msgspec.structs import replace

from handfast.config import Address, Config, Listener, TcpAddress, UnixAddress
from handfast.errors import HandfastError
from handfast.process.listening import Bound, bind

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
        self._numbers = 0

    def open(self, config: Config) -> tuple[Bound, ...]:
        """Give a configuration's sockets, binding those that are new.

        Raises HandfastError when one cannot be bound, and leaves none of the new ones behind.
        """
        found: dict[_Key, Bound] = {}
        try:
            for listener in config.listeners:
                key = _key(listener, found)
                there = self._bound.get(key)
                found[key] = replace(there, listener=listener) if there else self._bind(listener)
        except HandfastError:
            self._close(each for key, each in found.items() if key not in self._bound)
            raise
        self._bound |= found
        return tuple(found.values())

    def _bind(self, listener: Listener) -> Bound:
        address, number = listener.address, self._numbers
        self._numbers += 1
        holder = self._holder(address)
        if holder is not None:  # one of another name, which this one replaces
            return replace(bind(listener, number, holder.sock.dup()), given=holder.given)
        return bind(listener, number, self._spare.pop(str(address), None) or self._claim(address))

    def _holder(self, address: Address) -> Bound | None:
        if isinstance(address, TcpAddress) and not address.port:
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
