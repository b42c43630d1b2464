"""From one generation of the configuration to the next, with no moment without one that serves.

The steps, each behind the answer to the one before:

1. The configuration is read and checked, and new listening sockets are bound.
2. A new template reads every file that it names. Whatever is wrong up to here is told to who asked,
   and nothing has changed.
3. The relays take the new plan, and hold their live connections against it.
4. The new acceptors are forked. When all of them accept, those of the old generation finish their
   handshakes and end. Both accept from the same sockets, so no client is turned away.

One changeover at a time; what is asked for meanwhile makes one more, behind it. An old
generation has time to finish its handshakes; from when another follows it has a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, Literal, Protocol, TypeAlias

from handfast import __version__
from handfast.config import Config
from handfast.errors import ConfigError, HandfastError, Problem
from handfast.observe.events import ConfigLoaded, Event, Reload, SystemFault
from handfast.observe.log import Log
from handfast.observe.status import Reloads
from handfast.process.child import Child
from handfast.process.columns import Columns
from handfast.process.family import Family, Role
from handfast.process.generation import Generation, Phase
from handfast.process.listeners import Listeners
from handfast.process.messages import Died, FromChild, Loaded, Ready, Refused, Spawned
from handfast.process.relays import Relays
from handfast.process.source import Source
from handfast.process.succession import installed_version
from handfast.transport.alarm import Alarm
from handfast.transport.loop import Loop

LOAD_SECONDS: Final = 60.0
CONFIGURE_SECONDS: Final = 10.0
START_SECONDS: Final = 30.0

Answer: TypeAlias = Callable[[HandfastError | None], None]
"""Called once with why a reload was refused, or with None when it has worked."""

_FROM_THE_START: Final = ("nworkers", "control", "pidfile", "metrics", "logfile")


class Serving(Protocol):
    """Who is told of changeovers: the supervisor."""

    def template(self, generation: Generation) -> Role:
        """Give what a generation's template is to run."""

    def loaded(self, config: Config, old: Config | None) -> None:
        """A generation is about to serve, beside the old one."""

    def serving(self, config: Config) -> None:
        """A generation serves, and the one before it no more."""

    def cannot_start(self, error: ConfigError) -> None:
        """The first generation was refused."""


class Generations:
    """The generation that serves, the one that is to follow, and those that end."""

    def __init__(
        self,
        *,
        source: Source,
        listeners: Listeners,
        serving: Serving,
        relays: Relays,
        family: Family,
        columns: Columns,
        loop: Loop,
        log: Log,
    ) -> None:
        self.listeners = listeners
        self.reloads = Reloads()
        self.current: Generation | None = None
        self._next: Generation | None = None
        self._ending: list[Generation] = []
        self.number = 0  # of the last generation
        self._began = 0.0
        self._answers: list[Answer] = []
        self._waiting: list[Answer] = []
        self._asked_again = False
        self._alarm = Alarm(loop)
        self._source = source
        self._serving = serving
        self._relays = relays
        self._family = family
        self._columns = columns
        self._loop = loop
        self._log = log

    @property
    def busy(self) -> bool:
        """Whether a changeover is in progress or waits for its turn."""
        return self._next is not None or self._asked_again

    def __iter__(self) -> Iterator[Generation]:
        yield from self._ending
        yield from (each for each in (self.current, self._next) if each is not None)

    def find(self, child: Child) -> Generation | None:
        """Give the generation that a process is of."""
        return next((each for each in self if child in each), None)

    def needs_upgrade(self) -> bool:
        """Tell whether a reload has to be an upgrade: by another version, or of all processes.

        A configuration that is wrong needs none: the reload will tell.
        """
        if self.current is None:
            return False
        try:
            config = self._source.load()
        except HandfastError:
            return False
        return installed_version() != __version__ or _needs_others(self.current.config, config)

    # One changeover

    def begin(self, config: Config) -> None:
        """Start the first generation; raises HandfastError when a socket cannot be bound."""
        self._begin(config)

    def reload(self, answer: Answer | None = None) -> None:
        """Replace the generation by one of the configuration as it is now."""
        if self._next is not None or self.current is None:
            self._asked_again = True
            self._waiting += [answer] if answer else []
            return
        self._answers = [answer] if answer else []
        self._began = time.monotonic()
        try:
            self._begin(self._source.load())
        except HandfastError as error:
            self._refuse(error)

    def _begin(self, config: Config) -> None:
        bound = self.listeners.open(config)
        self.number += 1
        number = self.number
        generation = self._next = Generation(
            number, config, bound, self._family, self._columns, self._loop, self._log
        )
        for event in _config_events(config):
            self._log.emit(event)
        generation.start(self._serving.template(generation))
        self._alarm.set(LOAD_SECONDS, lambda: self._too_slow(generation))

    def _too_slow(self, generation: Generation) -> None:
        if generation is self._next and generation.phase is Phase.LOADING:
            self._refuse(HandfastError(f"the files could not be read within {LOAD_SECONDS:g} s"))

    def _configure(self, generation: Generation) -> None:
        self._serving.loaded(generation.config, self.current.config if self.current else None)
        self._alarm.set(CONFIGURE_SECONDS, self._relays_are_silent)
        number, plan = generation.number, generation.plan
        self._relays.configure(number, plan, lambda: self._spawn(generation))

    def _relays_are_silent(self) -> None:
        for child in self._relays.give_up_waiting():
            self._log.emit(SystemFault(f"{child.name} does not answer; its rules may be old"))

    def _spawn(self, generation: Generation) -> None:
        generation.serve()
        self._alarm.set(START_SECONDS, lambda: self._not_ready(generation))
        self._change_over_if_ready()

    def _not_ready(self, generation: Generation) -> None:
        if generation is self._next:
            waiting = [*generation.acceptors, *self._relays.children]
            names = ", ".join(each.name for each in waiting if not each.ready)
            self._refuse(HandfastError(f"not ready within {START_SECONDS:g} s: {names}"))

    def _change_over_if_ready(self) -> None:
        generation = self._next
        if generation is None or not generation.ready or not self._relays.ready:
            return
        self._alarm.stop()
        old, self.current, self._next = self.current, generation, None
        for each in self._ending:
            each.hurry()
        if old is not None:
            old.drain()
            self._bury(old)
        self.listeners.keep(generation.bound)
        self._serving.serving(generation.config)
        if old is not None:
            self._tell()

    def _refuse(self, error: HandfastError) -> None:
        """Give up the next generation; nothing has changed, or is put back."""
        self._alarm.stop()
        refused, self._next = self._next, None
        if refused is not None:
            self._give_up(refused)
        located = self._source.locate(error) if isinstance(error, ConfigError) else error
        if self.current is None:
            self._serving.cannot_start(
                located if isinstance(located, ConfigError) else ConfigError(Problem(str(located)))
            )
            return
        self.listeners.keep(self.current.bound)
        self._tell(located)

    def _give_up(self, refused: Generation) -> None:
        if refused.phase is Phase.LOADING:
            refused.kill()
        else:
            refused.drain()  # some of its acceptors may have clients
        current = self.current
        if refused.plan >= 0 and current is not None:  # the relays were told of it
            self._relays.configure(current.number, current.plan, current.serve)
        self._bury(refused)

    def _bury(self, ending: Generation) -> None:
        """Wait for the end of a generation that was told to; it may have come already."""
        if ending.template.pid:
            self._ending.append(ending)
        else:
            ending.close_plan()

    def _tell(self, error: HandfastError | None = None) -> None:
        text = str(error or "")
        outcome: Literal["ok", "refused"] = "refused" if error else "ok"
        took = round((time.monotonic() - self._began) * 1000, 3)
        number = self.current.number if self.current else 0
        self._log.emit(Reload(outcome=outcome, generation=number, duration_ms=took, error_msg=text))
        before = self.reloads
        self.reloads = (
            Reloads(before.ok, before.failed + 1, before.last, text)
            if error
            else Reloads(before.ok + 1, before.failed, time.time())
        )
        answers, self._answers = self._answers, []
        for answer in answers:
            answer(error)
        if self._asked_again:
            self._asked_again = False
            waiting, self._waiting = self._waiting, []
            self._loop.call_later(0, lambda: self._reload_for(waiting))

    def _reload_for(self, waiting: list[Answer]) -> None:
        def answer(error: HandfastError | None) -> None:
            for each in waiting:
                each(error)

        self.reload(answer)

    # What the processes say

    def heard(self, child: Child, message: FromChild, descriptors: list[int]) -> list[Child]:
        """Take a message of a template or an acceptor; give the acceptors that it tells dead."""
        generation = self.find(child)
        if generation is None:
            return []
        if child is not generation.template:
            if isinstance(message, Ready):
                child.ready = True
                self._change_over_if_ready()
            return []
        if isinstance(message, Loaded) and len(descriptors) == 1:
            self._take_loaded(generation, message, descriptors[0])
        elif isinstance(message, Refused):
            self._take_refused(generation, message)
        elif isinstance(message, Spawned):
            generation.spawned(message)
        elif isinstance(message, Died):
            dead = generation.died(message)
            return [dead] if dead is not None else []
        return []

    def _take_loaded(self, generation: Generation, message: Loaded, plan: int) -> None:
        generation.loaded(plan, message.certificates)
        if generation is self._next and generation.phase is Phase.LOADING:
            self._configure(generation)
        elif generation.phase is Phase.SERVING:  # its template died, and this is another
            following = self._next
            if following is not None and following is not generation and following.plan >= 0:
                generation.serve()  # the relays go by the next plan already
            else:
                self._relays.configure(generation.number, generation.plan, generation.serve)

    def _take_refused(self, generation: Generation, message: Refused) -> None:
        problems = [Problem(each) for each in message.problems]
        if generation is self._next:
            self._refuse(ConfigError(*problems))
        else:
            generation.refused_again(message.problems)

    def died(self, child: Child, status: int) -> list[Child]:
        """Take note of a template's death; give the acceptors that died with it."""
        generation = self.find(child)
        if generation is None:
            return []
        lost = generation.template_died(status)
        if generation in self._ending:
            self._ending.remove(generation)
            generation.close_plan()
        elif generation is self._next and generation.phase is Phase.LOADING:
            self._refuse(HandfastError("the process that reads the files died"))
        return lost

    def relays_changed(self) -> None:
        """A relay is ready, which a changeover may wait for."""
        self._change_over_if_ready()

    # The end

    def drain(self) -> None:
        """Accept no more, and let the handshakes in progress end."""
        self._alarm.stop()
        following, self._next = self._next, None
        if following is not None:
            following.kill()
            self._bury(following)
        current, self.current = self.current, None
        if current is not None:
            current.drain()
            self._bury(current)
        self.listeners.close()
        answers, self._answers, self._waiting = [*self._answers, *self._waiting], [], []
        for answer in answers:
            answer(HandfastError("handfast is stopping"))

    def retreat(self) -> None:
        """End the generation that cannot follow, and keep every socket."""
        self._alarm.stop()
        refused, self._next = self._next, None
        if refused is not None:
            refused.kill()
            self._bury(refused)

    def kill(self) -> None:
        """End what has not ended by itself."""
        for each in self:
            each.kill()


def _needs_others(old: Config, new: Config) -> bool:
    """Tell whether something has changed that processes get when they start."""
    if any(getattr(old, key) != getattr(new, key) for key in _FROM_THE_START):
        return True
    return old.isolation != new.isolation


def _config_events(config: Config) -> list[Event]:
    events: list[Event] = []
    for listener in config.listeners:
        service = listener.service
        shown = listener.certificates[0] if listener.certificates else None
        events.append(
            ConfigLoaded(
                nworkers=config.nworkers,
                certchain=shown.chain or "" if shown else "",
                cacerts=":".join(shown.cacerts) if shown else "",
                servcert=shown.cert or "" if shown else "",
                servkey=shown.key if shown else "",
                listener=str(listener.address),
                target=str(service or ""),
            )
        )
    return events
