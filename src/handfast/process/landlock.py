"""Which files, ports, sockets and processes a process may still reach: a Landlock domain.

It denies by what is named, where seccomp denies by the kind of request: a process whose filter had
a hole would still find no file behind it. It needs Linux 5.13; what a later kernel has learned to
restrict (ports from 6.7 on, abstract sockets and signals from 6.12) is used where it is there.
A domain holds for what is opened from then on, not for what is open.
"""

from __future__ import annotations

import landlockpy
import msgspec
from landlockpy import AccessFS, AccessNet, Ruleset, Scope


class Reach(msgspec.Struct, frozen=True):
    """What is left: whether files may be read (never written), and TCP ports be connected to."""

    read: bool = False
    connect: bool = False


def is_supported() -> bool:
    """Tell whether this kernel has Landlock, switched on, and the container lets us use it."""
    try:
        return landlockpy.supported()
    except OSError:
        return False


def restrict(reach: Reach) -> None:
    """Deny this process, for good, what is out of reach. Sets no_new_privs; raises OSError.

    Signals reach only the processes of the domain, itself and its children.
    """
    ports = AccessNet.BIND_TCP if reach.connect else AccessNet.BIND_TCP | AccessNet.CONNECT_TCP
    scope = Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL
    with Ruleset(handled_net=ports, scoped=scope) as rules:
        if reach.read:
            # From ABI 9 on, a Unix socket's name is looked up under a right of its own.
            rules.allow_path("/", AccessFS.READ_FILE | AccessFS.READ_DIR | AccessFS.RESOLVE_UNIX)
        rules.restrict()
