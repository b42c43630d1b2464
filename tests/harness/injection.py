"""Make a running process call the kernel, and look into its memory: proofs from inside a sandbox.

ptrace(2) stops the process, points it at a `syscall` instruction that its libc has anyway, steps
over that one instruction and puts everything back, so the answer is the one that the kernel gives
to this very process: to its filter, its domain, its user. For x86-64, and for root.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from seccompy import syscall_nr

_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_GETREGS: Final = 12
_SETREGS: Final = 13
_SINGLESTEP: Final = 9
_DETACH: Final = 17
_WALL: Final = 0x40000000
_SYSCALL: Final = b"\x0f\x05"
_CHUNK: Final = 1 << 20
_PAGE: Final = 4096
_KERNELS_OWN: Final = {"[vvar]", "[vvar_vclock]", "[vsyscall]"}
_SCRATCH: Final = 1 << 12  # below the stack pointer, past the 128 bytes that code may use there

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class _Registers(ctypes.Structure):
    """struct user_regs_struct of x86-64 (sys/user.h)."""

    _fields_ = [
        (name, ctypes.c_ulonglong)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
            *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags"),
            *("rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    ]


_ARGUMENTS: Final = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


def _ptrace(request: int, pid: int, data: object = None) -> None:
    if _libc.ptrace(request, pid, None, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace request {request}: {os.strerror(number)}")


class Stopped:
    """A process that stands still."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._registers = _Registers()
        _ptrace(_GETREGS, pid, ctypes.byref(self._registers))
        self._instruction = self._find_instruction()

    def _find_instruction(self) -> int:
        for start, end, flags, name in mappings(self._pid):
            if "x" in flags and "libc" in name:
                found = os.pread(self._memory, end - start, start).find(_SYSCALL)
                if found >= 0:
                    return start + found
        raise AssertionError(f"no syscall instruction in process {self._pid}")

    def call(self, name: str, *arguments: int | bytes) -> int:
        """Call the kernel; give its result, a negative errno if it refuses.

        Bytes are put into the process's memory and passed by their address. Not for what blocks.
        """
        registers = _Registers.from_buffer_copy(self._registers)
        registers.rip = self._instruction
        registers.rax = syscall_nr(name)
        registers.orig_rax = -1 & (1 << 64) - 1  # nothing to restart
        place = registers.rsp - _SCRATCH & ~15
        for register, argument in zip(_ARGUMENTS, arguments, strict=False):
            if isinstance(argument, bytes):
                os.pwrite(self._memory, argument, place)
                setattr(registers, register, place)
                place += len(argument) + 15 & ~15
            else:
                setattr(registers, register, argument & (1 << 64) - 1)
        _ptrace(_SETREGS, self._pid, ctypes.byref(registers))
        _ptrace(_SINGLESTEP, self._pid)
        _expect_stop(self._pid, signal.SIGTRAP)
        _ptrace(_GETREGS, self._pid, ctypes.byref(registers))
        return ctypes.c_longlong(registers.rax).value

    def let_go(self) -> None:
        """Put everything back; the process goes on as if nothing had been."""
        _ptrace(_SETREGS, self._pid, ctypes.byref(self._registers))
        _ptrace(_DETACH, self._pid)
        os.close(self._memory)


def _expect_stop(pid: int, number: signal.Signals) -> None:
    _, status = os.waitpid(pid, _WALL)
    assert os.WIFSTOPPED(status), f"process {pid} has ended: {status:#x}"
    assert os.WSTOPSIG(status) == number, f"process {pid} got signal {os.WSTOPSIG(status)}"


@contextmanager
def stopped(pid: int) -> Iterator[Stopped]:
    """Stop a process for as long as this lasts."""
    assert platform.machine() == "x86_64", "the registers are those of x86-64"
    _ptrace(_SEIZE, pid)
    _ptrace(_INTERRUPT, pid)
    _expect_stop(pid, signal.SIGTRAP)
    process = Stopped(pid)
    try:
        yield process
    finally:
        process.let_go()


def mappings(pid: int) -> list[tuple[int, int, str, str]]:
    """Give the memory of a process: start, end, flags (`r-xp`), and what is mapped there."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        place, flags, *_, name = [*line.split(maxsplit=5), ""][:6]
        start, end = (int(each, 16) for each in place.split("-"))
        found.append((start, end, flags, name))
    return found


def memory_has(pid: int, *needles: bytes) -> set[bytes]:
    """Tell which of these bytes are anywhere in the memory that a process can read."""
    longest = max(map(len, needles))
    found: set[bytes] = set()
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end, flags, name in mappings(pid):
            if "r" not in flags or name in _KERNELS_OWN:
                continue
            for place in range(start, end, _CHUNK):
                data = _read(memory, place, min(end, place + _CHUNK + longest))
                found |= {each for each in needles if each in data}
    finally:
        os.close(memory)
    return found


def _read(memory: int, start: int, end: int) -> bytes:
    """Read memory; what is mapped but not there (a file's end is before it) reads as zeros."""
    data = bytearray()
    while (place := start + len(data)) < end:
        try:
            data += os.pread(memory, end - place, place)
        except OSError:
            data += bytes(_PAGE - place % _PAGE)
    return bytes(data)
