"""From one program to the next, in the same process: how it is proved, and how it is run.

Before: the program that serves starts the next one as a child, with the arguments that it was
itself started with, and has it prove itself (see `proof`). Then it runs that in its own place by
execve(2), which keeps the PID, the descriptors that are to be inherited and the children.

After: the next program brings its processes up beside the old ones. If that fails it runs the one
before in its place again, which finds everything as it was (`go_back`). That is possible where that
program is still there: where the two have an interpreter each, and not where one was installed over
the other.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Mapping, MutableMapping
from tempfile import TemporaryDirectory
from typing import Final, NoReturn

import msgspec

from handfast import __version__
from handfast.errors import ConfigError, HandfastError, Problem
from handfast.observe.log import Log
from handfast.process.child import Child, Kind
from handfast.process.family import Family, cause, kill
from handfast.process.inheritance import (
    INHERITANCE,
    Inheritance,
    Program,
    keep_to_ourselves,
    leave,
    number,
    pass_on,
)
from handfast.process.messages import FromChild, Proved, Refused
from handfast.transport.alarm import Alarm
from handfast.transport.loop import Loop

PROOF: Final = "HANDFAST_PROOF"
"""The environment variable that asks for a proof: see `Asked`."""
RETURNED: Final = "HANDFAST_RETURNED"
"""The environment variable that says why the next program did not come up."""

PROOF_SECONDS: Final = 60.0
_QUIET_SECONDS: Final = 0.02
_MOST_PROOFS: Final = 3  # of one upgrade, if the configuration changes meanwhile
_PER_PROCESS: Final = 4
_SPARE: Final = 24
_WORDS: Final = 4000  # bytes of a proof's last words
_OURS: Final = "handfast: "
_WRONG_CONFIGURATION: Final = 2  # the exit code for that


def this_program(arguments: tuple[str, ...]) -> Program:
    """Describe the program that runs, by the arguments that it is to be run with."""
    return Program(__version__, sys.executable, arguments)


def installed_version() -> str:
    """Give the version that a new process would be: where this one came from there may be another.

    Without an installed package (run from a directory) it is the one that runs.
    """
    from importlib.metadata import (  # noqa: PLC0415 - for reloads only, and large
        PackageNotFoundError,
        version,
    )

    try:
        return version("handfast")
    except PackageNotFoundError:
        return __version__


def _command(program: Program) -> list[str]:
    # -P: no module of the working directory's is to take the place of one of ours.
    return [program.python, "-P", "-m", "handfast", *program.arguments]


class Succession:
    """One try to have `successor` take our place.

    `bequeath` gives what it is to inherit, and `is_quiet` tells whether nothing is half done.
    `failed` is called once when it comes to nothing; when it does not, nothing comes back.
    """

    def __init__(
        self,
        successor: Program,
        bequeath: Callable[[Program], Inheritance],
        is_quiet: Callable[[], bool],
        failed: Callable[[HandfastError], None],
        family: Family,
        loop: Loop,
        log: Log,
    ) -> None:
        self.child = Child(Kind.PROOF, 0)
        self._successor = successor
        self._bequeath = bequeath
        self._is_quiet = is_quiet
        self._failed = failed
        self._family = family
        self._loop = loop
        self._log = log
        self._alarm = Alarm(loop)
        self._output = -1
        self._problem: HandfastError | None = None
        self._proved: Proved | None = None
        self._cancelled = False
        self._configuration = b""
        self._tries = 0
        self._directory: TemporaryDirectory[str] | None = None

    def begin(self) -> None:
        """Start the proof."""
        self._tries += 1
        # It is here that it is removed: a proof may have to be killed.
        self._directory = TemporaryDirectory(prefix="handfast-proof-")
        self._output = os.memfd_create("proof")
        try:
            inheritance = self._bequeath(self._successor)
            check_descriptors(inheritance)
            left = leave(inheritance)
        except ConfigError as error:
            self._fail(error)
            return
        except (OSError, HandfastError) as error:
            self._fail(HandfastError(f"nothing can be handed over: {error}"))
            return
        self._configuration = inheritance.configuration
        keep, place = {self._output, left}, self._directory.name
        started = self._family.fork(
            self.child, lambda control: (lambda: self._run(control.fileno(), left, place), keep)
        )
        os.close(left)
        if started:
            self._alarm.set(PROOF_SECONDS, lambda: kill(self.child))
        else:
            self._fail(HandfastError("the proof cannot be started; the log says why"))

    def _run(self, control: int, left: int, place: str) -> NoReturn:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(self._output, 1)
        os.dup2(self._output, 2)
        for descriptor in (control, left):
            os.set_inheritable(descriptor, True)
        variables = {PROOF: f"{control} {place}", INHERITANCE: str(left)}
        _execute(self._successor, {**os.environ, **variables})

    def cancel(self) -> None:
        """Go on with this program; `failed` is called all the same, if it was not."""
        self._cancelled = True
        kill(self.child)

    def heard(self, message: FromChild) -> None:
        """Take a message of the proof's."""
        if isinstance(message, Proved):
            self._proved = message
        elif isinstance(message, Refused):
            self._problem = ConfigError(*map(Problem, message.problems))

    def buried(self, status: int) -> None:
        """Take note of the end of the proof."""
        self._alarm.stop()
        self._family.dead(self.child, status, expected=True)
        error = self._problem or self._judge(status)
        if error is None:
            self._succeed()
        else:
            self._fail(error)

    def _judge(self, status: int) -> HandfastError | None:
        if self._proved is not None and not status:
            return None
        data = os.pread(self._output, _WORDS, max(0, os.fstat(self._output).st_size - _WORDS))
        words = data.decode(errors="replace").strip().splitlines()
        complaints = [each.removeprefix(_OURS) for each in words if each.startswith(_OURS)]
        if status == _WRONG_CONFIGURATION and complaints:
            return ConfigError(*map(Problem, complaints))
        # A traceback ends with what matters, and so does what we print ourselves.
        others = [each for each in words if not each.startswith(_OURS)][-1:]
        said = [*complaints[-1:], *(f"({each})" if complaints else each for each in others)]
        return HandfastError(f"its proof failed: {' '.join(said) or cause(status)}")

    def _succeed(self) -> None:
        """Have it take our place, as soon as nothing is half done."""
        if self._cancelled:
            self._fail(HandfastError("it was called off"))
            return
        if not self._is_quiet():
            self._loop.call_later(_QUIET_SECONDS, self._succeed)
            return
        try:
            inheritance = self._bequeath(self._successor)
            left = leave(inheritance)
        except (OSError, HandfastError) as error:
            self._fail(HandfastError(f"nothing can be handed over: {error}"))
            return
        if inheritance.configuration != self._configuration:
            os.close(left)
            self._begin_anew()
            return
        self._clean_up()
        self._log.flush()
        problem = _succeed(self._successor, inheritance, left, {})
        os.close(left)
        self._fail(problem)

    def _begin_anew(self) -> None:
        """Prove the next program by what is in the configuration now."""
        if self._tries >= _MOST_PROOFS:
            self._fail(HandfastError("the configuration changes all the time"))
            return
        self._clean_up()
        self._proved = None
        self.begin()

    def _fail(self, error: HandfastError) -> None:
        self._clean_up()
        self._failed(error)

    def _clean_up(self) -> None:
        """Remove what the proof has left."""
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None
        if self._output >= 0:
            os.close(self._output)
            self._output = -1


def _succeed(
    successor: Program, inheritance: Inheritance, left: int, variables: Mapping[str, str]
) -> HandfastError:
    """Run a program in our place; comes back only with why that did not work."""
    environment = {**os.environ, **variables, INHERITANCE: str(left)}
    try:
        pass_on(inheritance)
        os.set_inheritable(left, True)
        _execute(successor, environment)
    except OSError as error:
        keep_to_ourselves(inheritance)
        return HandfastError(f"{successor.python} cannot be run: {error.strerror or error}")
    except HandfastError as error:
        return error


def _execute(program: Program, environment: Mapping[str, str]) -> NoReturn:
    os.execve(program.python, _command(program), environment)  # noqa: S606 - it is the point


def can_go_back(inheritance: Inheritance, returned: str) -> bool:
    """Tell whether the program before is still there, and has not failed itself."""
    return not returned and inheritance.program.python != inheritance.successor.python


def go_back(inheritance: Inheritance, left: int, reason: str) -> HandfastError:
    """Run the program before in our place again; comes back only with why that did not work."""
    return _succeed(inheritance.program, inheritance, left, {RETURNED: reason})


class Asked(msgspec.Struct, frozen=True):
    """What a proof is asked with: the descriptor of its control socket, and a directory for it."""

    control: int
    directory: str


def claim_proof(environment: MutableMapping[str, str]) -> Asked | None:
    """Tell whether this process is to prove this program, and how it is asked."""
    control, _, directory = environment.pop(PROOF, "").partition(" ")
    return Asked(number(control), directory) if directory and number(control) >= 0 else None


def check_descriptors(inheritance: Inheritance) -> None:
    """Refuse what there are too few descriptors for; raises HandfastError."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    held = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not paths
    # The next program has all of it, copies of the control sockets, and its own of everything.
    wanted = 2 * held + _PER_PROCESS * len(inheritance.relatives) + _SPARE
    if limit not in (resource.RLIM_INFINITY, -1) and wanted > limit:
        raise HandfastError(
            f"an upgrade may need {wanted} descriptors, and {limit} are allowed; raise LimitNOFILE"
        )
