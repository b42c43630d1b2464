"""From root to nobody: the account, the empty root directory, and what is given up with them.

What the kernel needs privilege for comes first, what takes the privilege away last; the order is
the point of `drop`. Nothing comes back: the saved IDs change too, the capability sets and the
bounding set are empty, and no program that is run can add to them (no_new_privs).
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import resource
import stat
from pathlib import Path
from typing import Final

import msgspec

from handfast.errors import ConfigError
from handfast.process import linux

EMPTY_DIRECTORY: Final = Path("/run/handfast/empty")

_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH
_SWITCHING: Final = 1 << linux.CAP_SETUID | 1 << linux.CAP_SETGID


class Account(msgspec.Struct, frozen=True):
    """Whom processes run as."""

    uid: int
    gid: int


def holds(capability: int) -> bool:
    """Tell whether this process has a capability, `linux.CAP_...`, in effect."""
    return bool(linux.effective_capabilities() >> capability & 1)


def may_switch() -> bool:
    """Tell whether this process may become any user it likes."""
    return linux.effective_capabilities() & _SWITCHING == _SWITCHING


def account(user: str, group: str) -> Account:
    """Look a user and a group up, the user's own if empty. Raises ConfigError, for root too."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(
            f"user: there is no user {user!r} here; "
            f"make one (useradd --system {user}) or name another"
        ) from None
    try:
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError:
        raise ConfigError(
            f"group: there is no group {group!r} here; "
            f"make one (groupadd --system {group}) or name another"
        ) from None
    if entry.pw_uid == 0 or gid == 0:
        raise ConfigError(
            "user, group: processes that meet the network cannot be root's; "
            "name a user and a group without privileges"
        )
    return Account(entry.pw_uid, gid)


def check_root_directory(path: Path) -> None:
    """Check that a directory is fit for chroot: nobody but root can change or replace it.

    Raises ConfigError.
    """
    try:
        found = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"chroot: {path}: {error.strerror}; make it (install -d -m 0755 {path})"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"chroot: {path} is not a directory; name one")
    _refuse_if_open(path, found, found.st_mode & _WRITABLE)
    for above in path.resolve().parents:
        found = above.stat()
        # In a sticky directory (/tmp) only its owner can rename what is root's.
        _refuse_if_open(above, found, found.st_mode & (_WRITABLE | stat.S_ISVTX))


def _refuse_if_open(path: Path, found: os.stat_result, mode: int) -> None:
    if found.st_uid != 0 or (mode & _WRITABLE and not mode & stat.S_ISVTX):
        raise ConfigError(
            f"chroot: {path} can be changed by others than root; "
            f"give it back (chown root {path}; chmod 0755 {path})"
        )


def make_empty_directory(path: Path = EMPTY_DIRECTORY) -> None:
    """Make the default root directory where it is missing. Raises ConfigError, OSError."""
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.mkdir(mode=0o755, exist_ok=True)
    check_root_directory(path)
    if any(path.iterdir()):
        raise ConfigError(f"chroot: {path} is not empty; empty it, or set chroot")


def allow_locked_memory() -> None:
    """Lift the limit on locked memory for this process and its children, where that is allowed."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)


def may_lock_memory() -> bool:
    """Tell whether memory may be locked without limit. With one, later allocations would fail."""
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY


def drop(become: Account | None, root: str) -> None:
    """Give up all privileges: root directory (unless empty), account (unless None), capabilities.

    Raises OSError.
    """
    if root:
        os.chroot(root)
        os.chdir("/")
    if holds(linux.CAP_SETPCAP):
        linux.drop_bounding_capabilities()
    if become is not None:
        os.setgroups([])
        os.setresgid(become.gid, become.gid, become.gid)
        os.setresuid(become.uid, become.uid, become.uid)
    linux.drop_capabilities()


def drop_dumps() -> None:
    """Make this process one that leaves no core, and that its own user cannot look into."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
