"""Fork a child that starts clean: its signals, its title, its descriptors, its end."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable

from setproctitle import setproctitle

from handfast.process.linux import die_with_parent

_NO_DESCRIPTOR = 0x7FFFFFFF
_TERMINAL = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_OURS = (*_TERMINAL, signal.SIGTERM, signal.SIGCHLD)


def fork(title: str, main: Callable[[], int], keep: Iterable[int]) -> int:
    """Fork, and give the child's PID.

    The child is called `handfast: TITLE`, keeps the standard streams and the descriptors in
    `keep` only, is killed when its parent ends, and ends with what `main` returns.
    """
    parent = os.getpid()
    _flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with_parent(parent)
        setproctitle(f"handfast: {title}")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold keys and traffic
        _reset_signals()
        _close_all_but({0, 1, 2, *keep})
        # What was inherited is not garbage to us, and looking at it would unshare its pages.
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        status = main()
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
        traceback.print_exc()
    finally:
        # Nothing may raise here: the child would go on with its parent's work.
        _flush()
        os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # it may be closed (None then), or a pipe without a reader


def _reset_signals() -> None:
    """Leave the terminal's signals to the supervisor, and let SIGTERM end this process alone."""
    for number in _OURS:
        signal.signal(number, signal.SIG_DFL)
    for number in (*_TERMINAL, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def _close_all_but(keep: set[int]) -> None:
    """Close the descriptors between those to keep; a sandboxed process cannot list its own."""
    low = 0
    for descriptor in sorted(keep):
        if low < descriptor:  # closerange(0, 0) closes all there are
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, _NO_DESCRIPTOR)
