"""The processes beside those that serve clients: the resolver, the monitor, and the demo."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Final

from handfast.config import Address, TargetAddress, TcpAddress, UnixAddress
from handfast.errors import HandfastBug
from handfast.process import roles
from handfast.process.child import Child, Kind
from handfast.process.family import Family, Role
from handfast.process.inheritance import Place
from handfast.process.listening import listen
from handfast.process.messages import Serve, send
from handfast.process.relays import Relays
from handfast.process.resolving import seal_targets
from handfast.relay.resolver import literal
from handfast.transport.loop import Loop

_MODULES: Final = {
    Kind.MONITOR: "handfast.process.monitor",
    Kind.DEMO: "handfast.process.demo",
}
"""What few have, and what brings large libraries with it, is imported by those who have it.

Here, and not in the child, which may be forked when another version has been installed.
"""


class Sidecars:
    """Forks each of them, and again when it dies.

    The resolver is there from the first target on that is no IP address, the monitor for an address
    of `metrics`, the demo for a socket of its own.
    """

    def __init__(
        self,
        metrics: Address | None,
        demo: socket.socket | None,
        relays: Relays,
        family: Family,
        loop: Loop,
        common: roles.Common,
    ) -> None:
        self._resolver = Child(Kind.RESOLVER, 0)
        self._address = metrics
        self._sockets = {} if demo is None else {Kind.DEMO: demo}
        kinds = [*([] if metrics is None else [Kind.MONITOR]), *self._sockets]
        self._others = tuple(Child(kind, 0) for kind in kinds)
        self._resolves = self._started = False
        for kind in kinds:
            import_module(_MODULES[kind])
        self._targets: tuple[TargetAddress, ...] = ()
        self._relays = relays
        self._family = family
        self._loop = loop
        self._common = common
        self._ending = False

    @property
    def children(self) -> tuple[Child, ...]:
        """Give those that are wanted."""
        return (self._resolver, *self._others) if self._resolves else self._others

    @property
    def ready(self) -> bool:
        """Tell whether all of them do their work."""
        return all(each.ready for each in self.children)

    def listen(self, inherited: Place | None = None) -> None:
        """Listen for whoever reads the metrics; HandfastError when that cannot be done there.

        The program before has listened there already, if the place is the one `inherited`.
        """
        if self._address is None:
            return
        if inherited is not None and inherited.name == str(self._address):
            self._sockets[Kind.MONITOR] = socket.socket(fileno=inherited.descriptor)
        else:
            self._sockets[Kind.MONITOR] = listen(self._address)

    def bequeath(self) -> tuple[Place | None, int]:
        """Give the sockets of the monitor and of the demo for the program that follows."""
        monitor, demo = self._sockets.get(Kind.MONITOR), self._sockets.get(Kind.DEMO)
        place = None if monitor is None else Place(str(self._address), monitor.fileno())
        return place, -1 if demo is None else demo.fileno()

    def start(self) -> None:
        """Fork all of them."""
        self._started = True
        for child in self.children:
            self._fork(child)

    def _fork(self, child: Child) -> None:
        if not self._ending and not self._family.fork(child, self._role(child)):
            self._later(child)

    def _later(self, child: Child) -> None:
        self._loop.call_later(child.delay(time.monotonic()), lambda: self._fork(child))

    def _role(self, child: Child) -> Role:
        common = self._common
        if child.kind is Kind.RESOLVER:
            ends, targets = self._relays.resolver_ends, self._targets
            keep = {each.fileno() for each in ends}
            return lambda control: (lambda: roles.resolver(control, ends, targets, common), keep)
        if child.kind is Kind.MONITOR:
            serve = roles.serve_metrics
        elif child.kind is Kind.DEMO:
            serve = roles.serve_demo
        else:
            raise HandfastBug(f"{child.name} is no sidecar")
        sock = self._sockets[child.kind]
        return lambda control: (lambda: serve(control, sock, common), {sock.fileno()})

    def died(self, child: Child, status: int) -> None:
        """Take note of a death, and fork another in its place."""
        self._family.dead(child, status, expected=self._ending)
        child.restarts += 1
        self._later(child)

    def resolve_for(self, targets: Iterable[TargetAddress]) -> None:
        """Have the resolver serve these targets, and no others."""
        self._targets = tuple(dict.fromkeys(targets))
        if not self._resolves and not all(map(_is_literal, self._targets)):
            self._resolves = True
            if self._started:  # what relays ask meanwhile waits in their channels
                self._fork(self._resolver)
        elif self._resolver.control is not None:
            descriptor = seal_targets(self._targets)
            send(self._resolver.control, Serve(), descriptor)
            os.close(descriptor)

    def end(self) -> None:
        """Replace none of them any more."""
        self._ending = True

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()
        if Kind.MONITOR in self._sockets and isinstance(self._address, UnixAddress):
            Path(self._address.path).unlink(missing_ok=True)


def _is_literal(address: TargetAddress) -> bool:
    return isinstance(address, TcpAddress) and literal(address) is not None
