"""Who could have put a socket where it is: whose the application behind it may be.

A session goes to whoever listens at a path, so what counts is who could have made the socket there.
That is root, and whoever can write to a directory on the way. If all of those are one user, and the
socket is that user's, it is the user's application; what the kernel says of the listener
(SO_PEERCRED) has then to be that user, or root. Anywhere else, as in /tmp, somebody may have been
there first, and the sticky bit does not help: the configuration has to name the user.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import Final

from handfast.errors import ConfigError

_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def owner_of(path: str) -> tuple[int, str]:
    """Give the user whose socket this is, -1 if others could have put it there, and then why."""
    try:
        owner = os.lstat(path).st_uid
        for directory in Path(path).parents:
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode):
                return -1, f"{directory} is a symbolic link; write the path without it"
            if found.st_uid not in {0, owner} or found.st_mode & _OTHERS:
                return -1, f"others can write to {directory}; name the `user` of the target"
    except OSError as error:
        return -1, f"{error.filename or path}: {error.strerror}"
    return owner, ""


def user_id(user: str) -> int:
    """Give the number of a user, who may be named by it; raises ConfigError."""
    if user.isdecimal() and len(user) <= 10:
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ConfigError(
            f"user of a target: there is no user {user!r} here; name another, or give a number"
        ) from None
