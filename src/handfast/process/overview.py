"""What the supervisor knows of the whole, as a Status."""

from __future__ import annotations

import os
import time

from handfast import __version__
from handfast.observe.status import ListenerStatus, ProcessStatus, State, Status
from handfast.process.child import Child, Kind
from handfast.process.generations import Generations
from handfast.process.kernel_tls import statistics
from handfast.process.listening import Bound
from handfast.process.relays import Relays
from handfast.process.sidecars import Sidecars
from handfast.process.upgrades import Upgrades
from handfast.transport.census import Census


class Overview:
    """All processes, in the order in which they are shown. `config` names the configuration.

    `started` is when handfast started (CLOCK_MONOTONIC), before its upgrades.
    """

    def __init__(
        self,
        config: str,
        generations: Generations,
        relays: Relays,
        sidecars: Sidecars,
        upgrades: Upgrades,
        census: Census,
        started: float,
    ) -> None:
        self._config = config
        self._generations = generations
        self._relays = relays
        self._sidecars = sidecars
        self._census = census
        self._upgrades = upgrades
        self.started = started

    def everyone(self) -> list[Child]:
        """Give every process but the supervisor."""
        passing = [each for one in self._generations for each in (one.template, *one.acceptors)]
        current = [*self._sidecars.children, *passing, *self._relays.children]
        return [*current, *self._upgrades.children]

    def workers(self) -> tuple[Child, ...]:
        """Give the processes that count what they do."""
        current = self._generations.current
        before = (
            each
            for each in self._upgrades.predecessors.children
            if each.kind in (Kind.ACCEPTOR, Kind.RELAY)
        )
        return (*(current.acceptors if current else ()), *self._relays.children, *before)

    def status(self, state: State, reports: dict[Child, dict[str, int]]) -> Status:
        """Describe all that the supervisor sees by itself, with what the workers reported."""
        current = self._generations.current
        uptime = round(time.monotonic() - self.started, 3)
        return Status(
            version=__version__,
            pid=os.getpid(),
            uptime=uptime,
            state=state,
            config=self._config,
            listeners=tuple(map(self._listener, current.bound if current else ())),
            processes=(
                ProcessStatus("supervisor", os.getpid(), uptime=uptime),
                *(self._process(each, reports.get(each, {})) for each in self.everyone()),
            ),
            totals={},
            generation=current.number if current else 0,
            reloads=self._generations.reloads,
            certificates=current.certificates if current else (),
            handshaking=self._census.handshakes(),
            kernel_tls=statistics(),
        )

    def _process(self, child: Child, counters: dict[str, int]) -> ProcessStatus:
        current = self._generations.current
        passing = child.kind in (Kind.TEMPLATE, Kind.ACCEPTOR)
        return ProcessStatus(
            name=child.worker_id,
            pid=child.pid,
            counters=counters,
            ready=child.ready,
            restarts=child.restarts,
            uptime=round(time.monotonic() - child.started, 3) if child.pid else 0.0,
            current=child not in self._upgrades.children
            and (not passing or (current is not None and child in current)),
        )

    def _listener(self, bound: Bound) -> ListenerStatus:
        service = bound.listener.service
        return ListenerStatus(
            listen=bound.text,
            target=str(service or ""),
            name=bound.listener.name,
            number=bound.number,
            active=self._census.of_listener(self._census.place(bound.number, "")),
        )
