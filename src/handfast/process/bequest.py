"""Put together what the next program is to have of a running supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handfast.process.child import Child
from handfast.process.inheritance import Inheritance, Place, Program, Relative
from handfast.process.succession import this_program

if TYPE_CHECKING:
    from handfast.process.supervisor import Supervisor


def bequest(house: Supervisor, successor: Program) -> Inheritance:
    """Give it all, with the numbers of descriptors that stay the supervisor's own."""
    listeners, spare, numbers = house.generations.listeners.bequeath()
    spare += tuple(Place(name, each.fileno()) for name, each in house.manager.left())
    metrics, demo = house.sidecars.bequeath()
    pidfile, control = house.plan.pidfile, house.control
    return Inheritance(
        program=this_program(),
        successor=successor,
        began=house.upgrades.began,
        started=house.overview.started,
        listeners=listeners,
        spare=spare,
        numbers=numbers,
        generation=house.generations.number,
        control=Place(str(control.path), control.fileno()) if control else None,
        pidfile=Place(pidfile.path, pidfile.fileno()) if pidfile else None,
        metrics=metrics,
        demo=demo,
        channels=tuple((one.fileno(), other.fileno()) for one, other in house.relays.sessions),
        relatives=tuple(_relative(each) for each in house.overview.everyone() if each.pid),
        waiters=house.upgrades.waiters,
        counts=house.gatherings.ended,
        reloads=house.generations.reloads,
        environment=house.manager.environment,
    )


def _relative(child: Child) -> Relative:
    control = child.control.fileno() if child.control is not None else -1
    return Relative(child.kind, child.number, child.pid, control, child.started)
