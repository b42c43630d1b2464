"""What each of the three processes may still do, and how it gives up the rest.

The fences are handfast's own. There are two of them around every process: one that the whole
family is born into, and one of its own.
"""

from __future__ import annotations

from typing import Final

from landlockpy import AccessNet, Ruleset

from handfast.process import landlock, linux, privileges, seccomp
from handfast.process.isolation import Identity

CALLS: Final[dict[str, tuple[seccomp.Permit, ...]]] = {
    "admin": (*seccomp.BASE, "wait4"),
    "acceptor": seccomp.BASE + seccomp.ACCEPT,
    "server": seccomp.BASE,
}
"""System calls. `BASE` moves bytes through what is open already: it opens, makes, runs nothing."""


def begin(identity: Identity) -> None:
    """Fence the family, before the forks: files can be read only, and nothing can be connected to.

    Signals stay in the family. The admin's cannot be kept from its children, for its death has to
    be theirs; so this fence is around all three.
    """
    if identity.landlock:
        landlock.restrict(landlock.Reach(read=True))


def enter(part: str, identity: Identity, parent: int) -> None:
    """Leave this process with what its part needs, for good. Raises OSError.

    What needs privileges comes first, what takes them away last.
    """
    privileges.drop(identity.account, identity.chroot)
    linux.die_with_parent(parent)
    privileges.drop_dumps()
    if privileges.may_lock_memory():
        linux.lock_memory()
    if identity.landlock:
        _leave_files() if part == "admin" else landlock.restrict(landlock.Reach())
    if identity.seccomp:
        seccomp.build(CALLS[part]).load()


def _leave_files() -> None:
    """Deny all files and ports, as `landlock.restrict` does, and leave signals as they are."""
    with Ruleset(handled_net=AccessNet.BIND_TCP | AccessNet.CONNECT_TCP) as rules:
        rules.restrict()
