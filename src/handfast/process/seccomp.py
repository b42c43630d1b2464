"""Which system calls a process may still make: a seccomp filter, built from named permits.

A filter is a list of what is permitted, never of what is forbidden: what Linux will invent is
denied already. It sees numbers and register values, no memory, so a permit may depend on flags and
families but not on paths and addresses; paths are for Landlock and the chroot.

What is not permitted fails with EPERM. It does not kill: code of ours, of CPython's or of OpenSSL's
that meets a call nobody thought of loses that call and not a thousand connections, and an intruder
is denied either way. `clone3` fails with ENOSYS, because a filter cannot see its flags: libc then
uses `clone`, whose flags it can see. A call by the numbers of another architecture (int 0x80) kills
the process, since none of our code makes one; those of x32 are just numbers without a permit.

Filters add up: a child has its parent's and its own, and a call must be permitted by both.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import Final, TypeAlias

import seccompy
from seccompy import Action, ArgCmp, CmpOp

from handfast.process import linux
from handfast.transport.kernel import SOL_TLS

Permit: TypeAlias = str | tuple[str, tuple[ArgCmp, ...]]
"""A system call by its name, whatever its arguments or only if all the conditions hold."""

_PROT_WRITE: Final = 2
_PROT_EXEC: Final = 4
_AT_EMPTY_PATH: Final = 0x1000
_SOCK_TYPE: Final = 0xF  # what is above are flags
_CLONE_THREAD: Final = 0x10000
_CLONE_NAMESPACES: Final = 0x7E020080  # CLONE_NEW*: user, pid, net, ipc, uts, cgroup, mnt, time
_OPEN_TO_CHANGE: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_SECCOMP_SET_MODE_FILTER: Final = 1

_DESCRIPTOR_COMMANDS: Final = (
    *(fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD),
    *(fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_ADD_SEALS, fcntl.F_GET_SEALS),
)
_FIONREAD: Final = 0x541B
_FIONBIO: Final = 0x5421  # what `setblocking` makes
_FIOCLEX: Final = 0x5451  # what `set_inheritable` makes
_TIOCOUTQ: Final = 0x5411


def _is(argument: int, value: int) -> ArgCmp:
    return ArgCmp(argument, CmpOp.EQ, value)


def _without(argument: int, flags: int) -> ArgCmp:
    return ArgCmp(argument, CmpOp.MASKED_EQ, 0, flags)


def _sockets(family: int, kind: int, *protocols: int) -> tuple[Permit, ...]:
    kind_is = ArgCmp(1, CmpOp.MASKED_EQ, kind, _SOCK_TYPE)
    return tuple(("socket", (_is(0, family), kind_is, _is(2, each))) for each in protocols)


BASE: Final[tuple[Permit, ...]] = (
    # Bytes, to and from what is open already.
    *("read", "readv", "write", "writev", "recvfrom", "recvmsg", "recvmmsg"),
    *("sendto", "sendmsg", "sendmmsg", "pread64", "lseek", "close", "close_range"),
    *("dup", "dup2", "dup3", "fstat", "shutdown", "getsockname", "getpeername"),
    "eventfd2",
    *(("fcntl", (_is(1, each),)) for each in _DESCRIPTOR_COMMANDS),
    # Not SOL_TLS: with that the kernel would give keys back. A level is an int to the kernel and 64
    # bits to the filter, so one that is not permitted can only be kept out by naming the others.
    *(
        (name, (_is(1, each),))
        for name in ("getsockopt", "setsockopt")
        for each in (socket.SOL_SOCKET, socket.IPPROTO_TCP)
    ),
    *(("ioctl", (_is(1, each),)) for each in (_FIONREAD, _FIONBIO, _FIOCLEX, _TIOCOUTQ)),
    # How libc spells fstat. The path can be non-empty; the chroot is.
    ("newfstatat", (_is(3, _AT_EMPTY_PATH),)),
    # Waiting.
    *("epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2"),
    *("poll", "ppoll", "select", "pselect6", "nanosleep", "clock_nanosleep", "restart_syscall"),
    # Memory, but none that can be run.
    *("brk", "munmap", "mremap", "madvise"),
    ("mmap", (_without(2, _PROT_EXEC),)),
    ("mprotect", (_without(2, _PROT_EXEC),)),
    # Itself: locks, signal handlers, clocks, numbers, the end.
    *("futex", "set_robust_list", "rseq", "sched_yield", "sched_getaffinity", "getcpu"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "getrandom"),
    *("clock_gettime", "clock_getres", "gettimeofday", "time", "getrusage", "sysinfo"),
    *("getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid"),
    ("prlimit64", (_is(0, 0),)),
    ("prctl", (_is(0, linux.PR_SET_NAME),)),
    *("exit", "exit_group"),
)

ACCEPT: Final[tuple[Permit, ...]] = ("accept4", "accept")

DIAL: Final[tuple[Permit, ...]] = (
    *_sockets(socket.AF_INET, socket.SOCK_STREAM, 0, socket.IPPROTO_TCP),
    *_sockets(socket.AF_INET6, socket.SOCK_STREAM, 0, socket.IPPROTO_TCP),
    "connect",
)

# A session moves into the kernel, which then moves bytes by itself.
KERNEL_TLS: Final[tuple[Permit, ...]] = (
    ("setsockopt", (_is(1, SOL_TLS),)),
    *("splice", "pipe2"),
    *(("fcntl", (_is(1, each),)) for each in (fcntl.F_SETPIPE_SZ, fcntl.F_GETPIPE_SZ)),
)

# Connections go to other relays; what is too long for a packet goes beside it.
GIVE_AWAY: Final[tuple[Permit, ...]] = ("memfd_create",)

FORK: Final[tuple[Permit, ...]] = (
    *("fork", "vfork", "wait4", "waitid", "pidfd_open", "getpriority"),
    "pidfd_send_signal",  # to its children: the Landlock domain has no others
    ("setpriority", (_is(0, os.PRIO_PROCESS), _is(1, 0))),
    ("clone", (_without(0, _CLONE_NAMESPACES | _CLONE_THREAD),)),
    # What it hands to the relays.
    *("memfd_create", "ftruncate"),
    # What its children enter a sandbox of their own with.
    ("prctl", (_is(0, linux.PR_SET_PDEATHSIG),)),
    ("prctl", (_is(0, linux.PR_SET_DUMPABLE), _is(1, 0))),
    ("prctl", (_is(0, linux.PR_SET_NO_NEW_PRIVS),)),
    ("prctl", (_is(0, linux.PR_CAP_AMBIENT), _is(1, linux.PR_CAP_AMBIENT_CLEAR_ALL))),
    *("capget", "capset", "mlockall", "landlock_create_ruleset", "landlock_restrict_self"),
    ("seccomp", (_is(0, _SECCOMP_SET_MODE_FILTER),)),
)

RESOLVE: Final[tuple[Permit, ...]] = (
    # What libc's resolver reads, and the modules of the name service that it loads to be run.
    ("openat", (_without(2, _OPEN_TO_CHANGE),)),
    ("open", (_without(1, _OPEN_TO_CHANGE),)),
    *("stat", "lstat", "statx", "newfstatat", "access", "faccessat", "faccessat2"),
    *("readlink", "readlinkat", "getdents64", "uname"),
    ("mmap", (_without(2, _PROT_WRITE),)),
    ("mprotect", (_without(2, _PROT_WRITE),)),
    # Whom it asks: name servers, local name services, and the kernel for the machine's addresses.
    *DIAL,
    "setsockopt",  # to hear that nobody is there (IP_RECVERR)
    *_sockets(socket.AF_INET, socket.SOCK_DGRAM, 0, socket.IPPROTO_UDP),
    *_sockets(socket.AF_INET6, socket.SOCK_DGRAM, 0, socket.IPPROTO_UDP),
    *_sockets(socket.AF_UNIX, socket.SOCK_STREAM, 0),
    *_sockets(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0),  # applications that take sessions
    *_sockets(socket.AF_UNIX, socket.SOCK_DGRAM, 0),
    *_sockets(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    *_sockets(socket.AF_NETLINK, socket.SOCK_DGRAM, 0),
    "bind",
    # It blocks, so it has threads.
    ("clone", (ArgCmp(0, CmpOp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD | _CLONE_NAMESPACES),)),
)


def is_supported() -> bool:
    """Tell whether this kernel filters, and we know the numbers of its system calls."""
    try:
        seccompy.arch()
        return seccompy.supported()
    except OSError:
        return False


def build(permits: tuple[Permit, ...]) -> seccompy.Filter:
    """Make the filter that lets these through. Names that this architecture lacks are no loss.

    Its `load` denies a process, for good, every other call; it sets no_new_privs, raises OSError.
    """
    made = seccompy.Filter(default=Action.ERRNO | errno.EPERM)
    made.errno("clone3", errno.ENOSYS)
    for permit in permits:
        name, conditions = (permit, ()) if isinstance(permit, str) else permit
        try:
            number = seccompy.syscall_nr(name)
        except ValueError:
            continue
        made.allow(number, args=conditions)
    return made
