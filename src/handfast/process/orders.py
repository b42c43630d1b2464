"""What a running handfast is told to do: by signals, and by commands on the control socket."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from handfast.errors import ConfigError, HandfastError
from handfast.observe.events import SignalReceived
from handfast.process.child import Child, Kind
from handfast.process.commands import Answer, Request
from handfast.process.linux import read_signals
from handfast.process.messages import Reopen, send
from handfast.process.rebalancing import Rebalancing
from handfast.process.upgrades import RELOAD, UPGRADE, Measurer

if TYPE_CHECKING:
    from handfast.process.control import Pending
    from handfast.process.supervisor import Supervisor

SIGNALS: Final = {
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_MEND_SECONDS: Final = 1.0


class Orders:
    """Takes the orders of one supervisor; signals are read from a descriptor."""

    def __init__(self, house: Supervisor, signals: int) -> None:
        self._house = house
        self._signals = signals
        self._later: list[Pending | None] = []  # who has asked for a reload too early
        self._rebalancing: Rebalancing | None = None
        self._asking: list[Pending] = []

    def on_signal(self) -> None:
        """Obey the signals that have come."""
        house = self._house
        for received in read_signals(self._signals):
            if received.number == signal.SIGCHLD:
                house.reap_orphans()
                continue  # the pidfds tell of our own
            name = signal.strsignal(received.number) or str(received.number)
            house.log.emit(SignalReceived(received.number, name, received.sender or None))
            if received.number == signal.SIGHUP:
                self.reload()
            elif received.number == signal.SIGUSR1:
                self._pass_log_on(house.log.reopen())
            elif received.number == signal.SIGUSR2:
                self._upgrade()
            elif house.state == "draining":
                house.loop.stop()
            elif received.number != signal.SIGTERM or not house.departure.begin():
                house.ending.drain()

    def handle(self, request: Request, client: Pending) -> None:
        """Obey a command."""
        house = self._house
        if request.command == "stop":
            client.answer(Answer())
            if house.state != "draining":
                house.ending.drain()
            return  # its connection closes with the control socket, at the very end
        if request.command == "reload":
            self.reload(client)
        elif request.command == "upgrade":
            self._upgrade(client, request.python)
        elif request.command == "rebalance":
            self._rebalance(client)
        else:
            house.gatherings.start(client, house.overview.workers())

    def catch_up(self) -> None:
        """Obey what came too early: before this program served, or when an upgrade was not over."""
        later, self._later = self._later, []
        for each in later:
            self.reload(each)

    def refuse(self, reason: str) -> None:
        """Answer those whose order has to wait: handfast is stopping."""
        later, self._later = self._later, []
        for each in later:
            if each is not None:
                each.answer(Answer(reason))
                each.close()

    def reload(self, client: Pending | None = None) -> None:
        """Take up what was changed, by other processes or another program where it has to be."""
        house = self._house
        coming = house.state == "starting" and not house.upgrades.is_stranded
        if coming and (client is None or house.upgrades.is_under_way):
            self._later.append(client)
            return

        def answer(error: HandfastError | None) -> None:
            house.tell_manager()
            if client is not None:
                wrong = isinstance(error, ConfigError)
                client.answer(Answer(str(error or ""), wrong_configuration=wrong))
                client.close()

        if house.upgrades.is_stranded:
            house.upgrades.order(client, RELOAD)
        elif house.state != "serving":
            answer(HandfastError(f"handfast is {house.state}; it cannot reload now"))
        elif not house.generations.needs_upgrade():
            house.manager.reloading()
            house.generations.reload(answer)
        elif house.upgrades.predecessors:
            self._later.append(client)  # the upgrade under way has read the configuration already
        else:
            house.manager.reloading()
            house.upgrades.order(client, RELOAD)

    def _upgrade(self, client: Pending | None = None, python: str = "") -> None:
        house = self._house
        if house.state == "serving" or (house.state == "starting" and house.upgrades.predecessors):
            house.manager.reloading()
            house.upgrades.order(client, UPGRADE, python)
        elif client is not None:
            client.answer(Answer(f"handfast is {house.state}; it cannot be upgraded now"))
            client.close()

    # Evening out

    @property
    def busy(self) -> bool:
        """Whether connections are on their way from relay to relay."""
        return self._rebalancing is not None

    def _rebalance(self, client: Pending) -> None:
        house = self._house
        if house.state != "serving" or house.upgrades.is_under_way:
            client.answer(Answer("handfast is not only serving; try again when it is"))
            client.close()
            return
        self._asking.append(client)
        if self._rebalancing is None:
            self._rebalancing = Rebalancing(house.relays, house.loop, self._rebalanced)
            house.ask(Measurer(self._rebalancing.begin))

    def _rebalanced(self, count: int, error: HandfastError | None) -> None:
        self._rebalancing = None
        asking, self._asking = self._asking, []
        for each in asking:
            each.answer(Answer(str(error or ""), moved=count))
            each.close()

    def given(self, child: Child, count: int) -> None:
        """Take note of what a relay has given away."""
        self._house.departure.given(child)
        if self._rebalancing is not None:
            self._rebalancing.given(child, count)

    def lost(self, child: Child) -> None:
        """Take note of the death of a process."""
        self._house.departure.given(child)
        if self._rebalancing is not None:
            self._rebalancing.lost(child)

    # The log

    def _pass_log_on(self, descriptor: int) -> None:
        for child in self._house.overview.everyone():
            if child.control is not None and child.kind is not Kind.DEMO:
                send(child.control, Reopen(), descriptor)

    def mend_log(self) -> None:
        """Look from time to time whether the log's daemon has gone, and connect to the next."""
        log = self._house.log
        if log.mend():
            self._pass_log_on(log.fileno())
        self._house.loop.call_later(_MEND_SECONDS, self.mend_log)
