"""A family of real, small processes in the test's own event loop, and a log to read."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from conftest import Certificates
from handfast.config import Address, Certificate, Config, Listener, Service, Target, TcpAddress
from handfast.errors import ConfigError, HandfastError
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process.child import Child, Kind
from handfast.process.columns import Columns
from handfast.process.family import Family, Role
from handfast.process.generation import Generation
from handfast.process.generations import Generations
from handfast.process.listeners import Listeners
from handfast.process.messages import (
    Configure,
    Configured,
    Drain,
    FromChild,
    Ready,
    ToChild,
    control_pair,
    receive_in_child,
    send,
)
from handfast.process.plans import make_plan
from handfast.process.relays import Relays
from handfast.process.sealed import unseal
from handfast.process.source import Source
from handfast.process.template import Engines, Template, Work
from handfast.relay.plan import decode
from handfast.transport.census import Census
from handfast.transport.kernel import Support
from handfast.transport.loop import Loop
from harness.instance import parse_line

PATIENCE = 30.0
LOCAL = "127.0.0.1"


def orders(control: socket.socket) -> Iterator[tuple[ToChild, list[int]]]:
    """What the supervisor says to a child, until it is gone or says Drain."""
    while True:
        try:
            message, descriptors = receive_in_child(control)
        except EOFError:
            return
        if isinstance(message, Drain):
            return
        yield message, descriptors


def obedient_relay(
    child: Child, control: socket.socket, receivers: Sequence[socket.socket], names: socket.socket
) -> int:
    """Go by every plan, and say so."""
    for message, descriptors in orders(control):
        if isinstance(message, Configure):
            plan = decode(unseal(descriptors[0]))
            assert plan.generation == message.generation
            send(control, Ready())
            send(control, Configured(plan.generation))
        for each in descriptors:
            os.close(each)
    return 0


def obedient_acceptor(number: int, column: int, control: socket.socket, engines: Engines) -> int:
    """Accept nobody, in order."""
    send(control, Ready())
    for _ in orders(control):
        pass
    return 0


class Household:
    """The loop, the log, the census, and the family. `told` is what was heard, in order."""

    def __init__(self, columns: int = 12) -> None:
        self.loop = Loop()
        self._fd = os.memfd_create("log")
        self.log = Log(self._fd, Level.DEBUG, process_type="master")
        self.census = Census(columns)
        self.columns = Columns(self.census)
        self.told: list[tuple[Child, FromChild]] = []
        self.lost: list[tuple[Child, int]] = []
        self._known: set[Child] = set()
        self.family = Family(self.loop, self.log, self._heard, self._buried)

    def _heard(self, child: Child, message: FromChild, descriptors: list[int]) -> None:
        self._known.add(child)
        self.told.append((child, message))
        self.heard(child, message, descriptors)

    def _buried(self, child: Child, status: int) -> None:
        self._known.add(child)
        self.lost.append((child, status))
        self.buried(child, status)

    def heard(self, child: Child, message: FromChild, descriptors: list[int]) -> None:
        """What else is done with a message."""

    def buried(self, child: Child, status: int) -> None:
        """What else is done about a death."""
        self.family.dead(child, status, expected=False)

    def until(self, condition: Callable[[], object]) -> None:
        """Run the loop until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it did not happen; the log:\n" + self.text()
            self.loop.call_later(0.01, self.loop.stop)
            self.loop.run()

    def text(self) -> str:
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0).decode()

    def events(self, event: str, **fields: str) -> list[dict[str, str]]:
        found = [parse_line(line) for line in self.text().splitlines()]
        return [each for each in found if each["event"] == event and fields.items() <= each.items()]

    def close(self) -> None:
        children = {*self.family.children, *self._known}
        self.family.kill_all()
        for child in children:
            if child.control is not None:
                child.control.close()
        self.loop.close()
        self.log.close()


@contextmanager
def household() -> Iterator[Household]:
    made = Household()
    try:
        yield made
    finally:
        made.close()


def is_running(pid: int) -> bool:
    """Tell whether a process has not ended: a zombie has."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([descriptor], [], [], 0)[0]
    finally:
        os.close(descriptor)


class Door(Household):
    """Generations of a configuration that the test may change, with relays that obey.

    `config` is what the next reload reads, or the error that it meets. `accept` is an acceptor's
    life, and `load` what a template does, None for the real one: both for those to come.
    """

    def __init__(self, certificates: Certificates) -> None:
        super().__init__()
        self.certificates = certificates
        self.config: Config | ConfigError = config_of(certificates)
        self.accept: Callable[[int, int, socket.socket, Engines], int] = obedient_acceptor
        self.load: Callable[[socket.socket], int] | None = None
        self.journal: list[str] = []
        self.error: ConfigError | None = None
        self.answers: list[HandfastError | None] = []
        self.relays = Relays(2, self.family, self.columns, self.loop, obedient_relay)
        self.generations = Generations(
            source=Source("a test", self._read),
            listeners=Listeners(lambda _: None),
            serving=self,
            relays=self.relays,
            family=self.family,
            columns=self.columns,
            loop=self.loop,
            log=self.log,
        )

    def _read(self) -> Config:
        if isinstance(self.config, ConfigError):
            raise self.config
        return self.config

    # What the supervisor does

    def template(self, generation: Generation) -> Role:
        """Give a real template, whose acceptors are the test's, or what the test has set."""
        bound = generation.bound
        accept, load = self.accept, self.load
        keep = {each.sock.fileno() for each in bound} | {self.log.fileno()}

        def main(control: socket.socket) -> int:
            work = Work(
                generation.config,
                lambda files: make_plan(
                    generation.number, generation.config, bound, files, Support()
                ),
                lambda: None,
                accept,
            )
            listening = tuple(each.sock for each in bound)
            log = self.log.heir(Level.DEBUG, process_type="master")
            return Template(control, keep, listening, work).run(log)

        def role(control: socket.socket) -> tuple[Callable[[], int], set[int]]:
            run = load or main
            return lambda: run(control), keep

        return role

    def loaded(self, config: Config, old: Config | None) -> None:
        self.journal.append("loaded")

    def serving(self, config: Config) -> None:
        self.journal.append("serving")

    def cannot_start(self, error: ConfigError) -> None:
        self.error = error

    def heard(self, child: Child, message: FromChild, descriptors: list[int]) -> None:
        self.journal.append(f"{child.name}: {type(message).__name__}")
        if child.kind in (Kind.TEMPLATE, Kind.ACCEPTOR):
            self.generations.heard(child, message, descriptors)
        elif isinstance(message, Configured):
            self.relays.confirmed(child, message.generation)
        elif isinstance(message, Ready):
            child.ready = True
            self.generations.relays_changed()

    def buried(self, child: Child, status: int) -> None:
        if child.kind is Kind.TEMPLATE:
            self.generations.died(child, status)
        else:
            self.relays.died(child, status)

    # What the test does

    @property
    def current(self) -> Generation:
        assert self.generations.current is not None
        return self.generations.current

    @property
    def settled(self) -> bool:
        """Tell whether one generation is all there is, and all of its processes are known."""
        found = list(self.generations)
        return len(found) == 1 and all(pids_of(found[0]))

    def start(self) -> None:
        assert isinstance(self.config, Config)
        self.generations.begin(self.config)
        self.relays.start()
        self.until(lambda: self.generations.current and self.settled)

    def ask(self) -> None:
        """Ask for a reload; its outcome is put to `answers`."""
        self.generations.reload(self.answers.append)

    def reload(self) -> HandfastError | None:
        """Reload, and wait until it is over and done; give what went wrong."""
        before = len(self.answers)
        self.ask()
        self.until(lambda: len(self.answers) > before and self.settled)
        return self.answers[-1]

    def close(self) -> None:
        children = [*self.relays.children]
        for each in self.generations:
            children += [each.template, *each.acceptors]
            each.close_plan()
        super().close()
        for child in children:
            if child.control is not None:
                child.control.close()
        self.generations.listeners.close()
        self.relays.close()


@contextmanager
def door(certificates: Certificates) -> Iterator[Door]:
    made = Door(certificates)
    try:
        yield made
    finally:
        made.close()


def listener_of(
    certificates: Certificates,
    name: str = "front",
    address: Address | None = None,
    chain: Path | None = None,
) -> Listener:
    target = Target(address=TcpAddress(host=LOCAL, port=9))
    return Listener(
        name=name,
        address=address or TcpAddress(host=LOCAL, port=0),
        certificates=(
            Certificate(chain=str(chain or certificates.chain), key=str(certificates.key)),
        ),
        service=Service(targets=(target,)),
    )


def config_of(certificates: Certificates, *listeners: Listener) -> Config:
    return Config(nworkers=2, listeners=listeners or (listener_of(certificates),))


def pids_of(generation: Generation) -> list[int]:
    return [each.pid for each in (generation.template, *generation.acceptors)]


def template_of(household: Household, generation: Generation) -> socket.socket:
    """Play a generation's template, which has loaded everything: give its end."""
    ours, theirs = control_pair()
    theirs.settimeout(PATIENCE)
    household._known.add(generation.template)
    household._known.update(generation.acceptors)
    generation.template.control = ours
    generation.template.ready = True
    return theirs
