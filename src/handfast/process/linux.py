"""The system calls that the standard library lacks."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from typing import Final

import msgspec

_libc: Final = ctypes.CDLL(None, use_errno=True)

CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
CAP_SYS_CHROOT: Final = 18

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4

_CAPABILITY_HEADER: Final = struct.pack("=Ii", 0x20080522, 0)  # version 3, this thread: capget(2)
_CAPABILITY_SETS: Final = struct.Struct("=6I")  # effective, permitted, inheritable; then bits 32 up

_SFD_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_SIGINFO: Final = struct.Struct("=IiiI")  # ssi_signo, ssi_errno, ssi_code, ssi_pid: signalfd(2)
_SIGINFO_SIZE: Final = 128


class Received(msgspec.Struct, frozen=True):
    """A signal, and the process that sent it (0: the kernel, or the terminal)."""

    number: int
    sender: int


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def prctl(option: int, *arguments: int) -> int:
    """Call prctl(2) with up to four arguments; raises OSError."""
    values = (*arguments, 0, 0, 0, 0)[:4]
    return _check(_libc.prctl(option, *map(ctypes.c_ulong, values)), "prctl")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (PR_SET_PDEATHSIG, prctl(2)).

    `parent` is its PID from before the fork: one that ended in between sends no signal. A change
    of user or group takes the order back, so it is given again afterwards.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def effective_capabilities() -> int:
    """Give the effective capabilities of this process, as a mask of `1 << CAP_...`."""
    sets = ctypes.create_string_buffer(_CAPABILITY_SETS.size)
    _check(_libc.capget(ctypes.c_char_p(_CAPABILITY_HEADER), sets), "capget")
    low, _, _, high, _, _ = _CAPABILITY_SETS.unpack(sets.raw)
    return int(low | high << 32)


def drop_bounding_capabilities() -> None:
    """Take every capability from the bounding set; needs CAP_SETPCAP, raises OSError without."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_READ, capability)
        except OSError:  # EINVAL: this kernel knows no more of them
            return
        prctl(PR_CAPBSET_DROP, capability)


def drop_capabilities() -> None:
    """Give up the effective, permitted, inheritable and ambient capabilities; needs none."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    nothing = ctypes.c_char_p(bytes(_CAPABILITY_SETS.size))
    _check(_libc.capset(ctypes.c_char_p(_CAPABILITY_HEADER), nothing), "capset")


def lock_memory() -> None:
    """Keep every page of this process, present and future, out of swap from its first use on."""
    _check(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT), "mlockall")


def signal_descriptor(signals: set[signal.Signals]) -> int:
    """Block the signals and give a descriptor to read them from (signalfd(2)); raises OSError."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    mask = sum(1 << (number - 1) for number in signals).to_bytes(128, "little")
    return _check(_libc.signalfd(-1, ctypes.c_char_p(mask), _SFD_FLAGS), "signalfd")


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


def is_child(pid: int) -> bool:
    """Tell whether a PID is that of a child of ours, alive or not buried yet."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def reap_orphans(ours: set[int]) -> None:
    """Bury the dead that are none of `ours`: as process 1 we inherit the children of others.

    Stops at one of ours, which is buried elsewhere.
    """
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in ours:
            return
        os.waitpid(found.si_pid, 0)
