"""Put together what the next program is to have of a running supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handfast.process.child import Child
from handfast.process.inheritance import Inheritance, Place, Program, Relative

if TYPE_CHECKING:
    from handfast.process.supervisor import Supervisor


def bequest(house: Supervisor, successor: Program) -> Inheritance:
    """Give it all, with the numbers of descriptors that stay the supervisor's own.

    Raises ConfigError when the configuration cannot be read.
    """
    listeners, spare, numbers = house.generations.listeners.bequeath()
    spare += tuple(Place(name, each.fileno()) for name, each in house.manager.left())
    metrics, demo = house.sidecars.bequeath()
    pidfile, control = house.plan.pidfile, house.control
    return Inheritance(
        program=house.upgrades.program,
        successor=successor,
        began=house.upgrades.began,
        started=house.overview.started,
        listeners=listeners,
        spare=spare,
        numbers=numbers,
        generation=house.generations.number,
        control=Place(str(control.path), control.fileno())
        if control
        else _before(house, "control"),
        pidfile=Place(pidfile.path, pidfile.fileno()) if pidfile else _before(house, "pidfile"),
        metrics=metrics or _before(house, "metrics"),
        demo=demo,
        channels=tuple((one.fileno(), other.fileno()) for one, other in house.relays.sessions),
        relatives=tuple(_relative(each) for each in house.overview.everyone() if each.pid),
        waiters=house.upgrades.waiters,
        counts=house.gatherings.ended,
        reloads=house.generations.reloads,
        environment=house.manager.environment,
        configuration=house.plan.source.content(),
        census=house.census.shared,
    )


def _before(house: Supervisor, what: str) -> Place | None:
    """Give what this program has inherited and not taken over, as long as it has not come up."""
    inherited = house.plan.inherited
    if inherited is None or not house.upgrades.is_stranded:
        return None
    place: Place | None = getattr(inherited.inheritance, what)
    return place


def _relative(child: Child) -> Relative:
    control = child.control.fileno() if child.control is not None else -1
    return Relative(
        child.kind, child.number, child.pid, control, child.started, child.parent, child.column
    )
