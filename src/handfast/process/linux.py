"""The two system calls that the standard library lacks."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from typing import Final

import msgspec

_libc: Final = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG: Final = 1
_SFD_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_SIGINFO: Final = struct.Struct("=IiiI")  # ssi_signo, ssi_errno, ssi_code, ssi_pid: signalfd(2)
_SIGINFO_SIZE: Final = 128


class Received(msgspec.Struct, frozen=True):
    """A signal, and the process that sent it (0: the kernel, or the terminal)."""

    number: int
    sender: int


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (PR_SET_PDEATHSIG, prctl(2)).

    `parent` is its PID from before the fork: one that ended in between sends no signal.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def signal_descriptor(signals: set[signal.Signals]) -> int:
    """Block the signals and give a descriptor to read them from (signalfd(2)); raises OSError."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    mask = sum(1 << (number - 1) for number in signals).to_bytes(128, "little")
    descriptor: int = _libc.signalfd(-1, ctypes.c_char_p(mask), _SFD_FLAGS)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return descriptor


def read_signals(descriptor: int) -> list[Received]:
    """Read the signals that are pending."""
    try:
        data = os.read(descriptor, 16 * _SIGINFO_SIZE)
    except BlockingIOError:
        return []
    found = []
    for start in range(0, len(data), _SIGINFO_SIZE):
        number, _, _, sender = _SIGINFO.unpack_from(data, start)
        found.append(Received(number, sender))
    return found
