"""One generation of the plan, made ready for use: routes, who may stay, trust in targets."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Final

from handfast.config import Service, TargetTls
from handfast.handover.message import Handover, Passthrough
from handfast.policy.clients import Clients, Decision
from handfast.policy.routes import Routes
from handfast.relay.plan import ListenerPlan, Plan
from handfast.tls.trust import Trust


class Listener:
    """A listener of one generation.

    `is_trusted` tells that the generation before had no trust anchor that this one has not, so that
    chains that were verified then need not be verified again.
    """

    __slots__ = ("clients", "is_trusted", "plan", "routes")

    def __init__(self, plan: ListenerPlan, *, is_trusted: bool) -> None:
        self.plan: Final = plan
        self.routes: Final = Routes(plan.routes)
        self.clients: Final = Clients(plan.clients)
        self.is_trusted: Final = is_trusted


class Generation:
    """What the relay goes by. `settled` tells that all connections were checked by `before`."""

    def __init__(self, plan: Plan, before: Generation | None = None, *, settled: bool = True):
        self.plan: Final = plan
        self.listeners: Final = {
            number: Listener(each, is_trusted=_keeps_anchors(number, each, before, settled=settled))
            for number, each in plan.listeners.items()
        }
        self._before = before.plan.generation if before else plan.generation
        self._trusts = {
            tls.trusted_certs: _trust(tls.trusted_certs, plan) for tls in _secured(plan)
        }

    def services(self) -> Iterator[Service]:
        """Give every service of the plan; some perhaps more than once."""
        return _services(self.plan)

    def service(self, handover: Handover) -> Service | None:
        """Give the service for a client, by the routes and then by its listener; None for none."""
        listener = self.listeners[handover.listener]
        peer = handover.session.peer
        through = isinstance(handover.session, Passthrough)
        route = listener.routes.find(peer.sni, peer.alpn, passthrough=through)
        if route is not None:
            return route.service
        return None if through else listener.plan.service

    def trust(self, tls: TargetTls) -> Trust:
        """Give what a target's certificate has to lead to."""
        return self._trusts[tls.trusted_certs]

    def decide(
        self, number: int, chain: tuple[bytes, ...], *, generation: int | None = None
    ) -> Decision:
        """Decide whether a client of listener `number` may be here.

        `generation` is that by which it was let in, None for one that was checked by the last.
        """
        listener = self.listeners[number]
        trusted = listener.is_trusted and (generation is None or generation >= self._before)
        now = datetime.datetime.now(datetime.UTC)
        return listener.clients.decide(chain, now, trusted=trusted)


def _keeps_anchors(
    number: int, plan: ListenerPlan, before: Generation | None, *, settled: bool
) -> bool:
    old = before.listeners.get(number) if before else None
    if old is None:
        return False
    kept = set(old.plan.clients.anchors) <= set(plan.clients.anchors)
    return kept and (settled or old.is_trusted)


def _services(plan: Plan) -> Iterator[Service]:
    for listener in plan.listeners.values():
        if listener.service is not None:
            yield listener.service
        for route in listener.routes:
            yield route.service


def _secured(plan: Plan) -> Iterator[TargetTls]:
    for service in _services(plan):
        for target in service.targets:
            if target.tls is not None:
                yield target.tls


def _trust(files: tuple[str, ...], plan: Plan) -> Trust:
    """Trust what is in these files or, without any, what the system trusts."""
    anchors = [der for name in files or ("",) for der in plan.anchors.get(name, ())]
    return Trust(dict.fromkeys(anchors))
