"""What each process of handfast is left with, and how it gives up the rest.

Four fences, each of which holds when the others do not: the account and its empty root directory
(`privileges`), the system calls (`seccomp`), the files and ports (`landlock`), and the memory,
which is neither dumped nor looked into nor swapped. `PERMITS` is the whole policy.

The supervisor calls `prepare` once, with the privileges that it was started with; every child calls
`enter` when it has imported and inherited all that it needs. Afterwards it can open nothing, so a
module that is imported later, a file read later, or a descriptor needed later is a bug.

A process gets at most what its parent has: acceptors are forked by the template, which has entered
already, so what an acceptor may do is permitted to the template too.

Not being root is no lack: there is no other account to become and no privilege to lose, and all the
rest applies as it is. A lack is what this kernel or container does not let root or anybody do.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - the codec of host names would be imported at its first use
import os
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
import seccompy

from handfast.config import Isolation
from handfast.errors import ConfigError
from handfast.process import landlock, linux, privileges, seccomp


class Role(Enum):
    """What a process is for."""

    TEMPLATE = "template"
    ACCEPTOR = "acceptor"
    RELAY = "relay"
    RESOLVER = "resolver"
    MONITOR = "monitor"


class Permits(msgspec.Struct, frozen=True, kw_only=True):
    """What a role needs: system calls, files and ports, its root directory, locked memory."""

    calls: tuple[seccomp.Permit, ...]
    reach: landlock.Reach = landlock.Reach()
    chroot: bool = True
    secrets: bool = False


PERMITS: Final = {
    Role.TEMPLATE: Permits(calls=seccomp.BASE + seccomp.FORK + seccomp.ACCEPT, secrets=True),
    Role.ACCEPTOR: Permits(calls=seccomp.BASE + seccomp.ACCEPT, secrets=True),
    Role.RELAY: Permits(
        calls=seccomp.BASE + seccomp.DIAL + seccomp.KERNEL_TLS + seccomp.GIVE_AWAY,
        reach=landlock.Reach(connect=True),
        secrets=True,
    ),
    Role.RESOLVER: Permits(
        calls=seccomp.BASE + seccomp.RESOLVE,
        reach=landlock.Reach(read=True, connect=True),
        chroot=False,
    ),
    Role.MONITOR: Permits(calls=seccomp.BASE + seccomp.ACCEPT),
}


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What processes become on this machine, and what it cannot give them.

    `account` None leaves the user as it is, `chroot` empty the root directory. `missing` names
    features with the reason, for the operator.
    """

    account: privileges.Account | None = None
    chroot: str = ""
    seccomp: bool = True
    landlock: bool = True
    missing: tuple[str, ...] = ()


def prepare(wanted: Isolation) -> Identity:
    """Find out what is possible here, and make the empty directory.

    Raises ConfigError for a user, group or directory that is not there, and, when isolation is
    required, for whatever is missing.
    """
    missing: list[str] = []
    root = os.geteuid() == 0
    identity = Identity(
        account=_account(wanted, missing) if root else None,
        chroot=_chroot(wanted, missing) if root else "",
        seccomp=seccomp.is_supported(),
        landlock=landlock.is_supported(),
    )
    if not identity.seccomp:
        missing.append("seccomp (not in this kernel, or denied by the container)")
    if not identity.landlock:
        missing.append("landlock (not in this kernel, switched off, or denied by the container)")
    if missing and wanted.mode == "required":
        raise ConfigError(
            f"isolation: required, but this system lacks {'; '.join(missing)}; "
            "provide it, or set isolation: preferred"
        )
    privileges.allow_locked_memory()
    if identity.seccomp:
        for role in Role:
            _ = _filter(role).program  # assembled here, once: children share what they inherit
    return msgspec.structs.replace(identity, missing=tuple(missing))


def _account(wanted: Isolation, missing: list[str]) -> privileges.Account | None:
    account = privileges.account(wanted.user, wanted.group)
    if privileges.may_switch():
        return account
    missing.append("user (root here lacks CAP_SETUID or CAP_SETGID)")
    return None


def _chroot(wanted: Isolation, missing: list[str]) -> str:
    if wanted.chroot:
        privileges.check_root_directory(Path(wanted.chroot))
    if not privileges.holds(linux.CAP_SYS_CHROOT):
        missing.append("chroot (root here lacks CAP_SYS_CHROOT)")
        return ""
    if wanted.chroot:
        return wanted.chroot
    try:
        privileges.make_empty_directory()
    except OSError as error:
        missing.append(f"chroot ({privileges.EMPTY_DIRECTORY}: {error.strerror})")
        return ""
    return str(privileges.EMPTY_DIRECTORY)


@cache
def _filter(role: Role) -> seccompy.Filter:
    return seccomp.build(PERMITS[role].calls)


def enter(role: Role, identity: Identity, parent: int) -> None:
    """Leave this process with what its role needs. It has to have one thread.

    `parent` is the PID from before the fork. Raises OSError when the kernel refuses what it has
    offered; the process must not go on then.
    """
    permits = PERMITS[role]
    # A child of the template's has nothing left to switch with, and nothing to switch from.
    become = identity.account if privileges.may_switch() else None
    may_move = permits.chroot and privileges.holds(linux.CAP_SYS_CHROOT)
    privileges.drop(become, identity.chroot if may_move else "")
    linux.die_with_parent(parent)
    privileges.drop_dumps()
    if permits.secrets and privileges.may_lock_memory():
        linux.lock_memory()
    if identity.landlock:
        landlock.restrict(permits.reach)
    if identity.seccomp:
        _filter(role).load()
