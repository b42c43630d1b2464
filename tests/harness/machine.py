"""A machine of a test's own, as far as handfast can see: network, names, accounts, /run, /dev/log.

Configurations that name port 443, hosts, users and paths can then be run as they stand, next to
anything else, and nothing is left behind. It needs root.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

USER: Final = "handfast"
USER_ID: Final = 65533
ADDRESSES: Final = ("10.0.0.11", "10.0.0.12")
"""Of this machine, beside those of the loopback interface."""

_CLONE_NEWNS: Final = 0x20000
_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 0x1000
_MS_MOVE: Final = 0x2000
_MS_PRIVATE: Final = 0x44000  # and MS_REC
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFFLAGS: Final = 0x8914
_UP: Final = 0x49  # IFF_UP, IFF_LOOPBACK, IFF_RUNNING
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")

_libc: Final = ctypes.CDLL(None, use_errno=True)


def become(directory: Path, names: Mapping[str, str]) -> None:
    """Have this process, which has one thread, see a machine of its own; root only.

    `directory` is for files of it, `names` go into /etc/hosts, host by host with its address.
    """
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET))
    _mount("none", "/", "", _MS_PRIVATE)
    _mount("tmpfs", "/run", "tmpfs")
    _devices(directory)
    lines = [f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **names}.items()]
    _cover(directory, "hosts", "".join(lines))
    _add(directory, "passwd", f"{USER}:x:{USER_ID}:{USER_ID}::/nonexistent:/usr/sbin/nologin\n")
    _add(directory, "group", f"{USER}:x:{USER_ID}:\n")
    _interfaces()


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode() or None, flags, None))


def _devices(directory: Path) -> None:
    """Make a /dev that a log daemon's socket can be made in, without the real one having it."""
    made = directory / "dev"
    made.mkdir()
    _mount("tmpfs", str(made), "tmpfs")
    for name in _DEVICES:
        (made / name).touch()
        _mount(f"/dev/{name}", str(made / name), "", _MS_BIND)
    _mount(str(made), "/dev", "", _MS_MOVE)


def _add(directory: Path, name: str, line: str) -> None:
    _cover(directory, name, Path("/etc", name).read_text() + line)


def _cover(directory: Path, name: str, text: str) -> None:
    """Put a file in place of one of /etc."""
    file = directory / name
    file.write_text(text)
    file.chmod(0o644)
    _mount(str(file), f"/etc/{name}", "", _MS_BIND)


def _interfaces() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("=16sH22x", b"lo", _UP))
        for number, address in enumerate(ADDRESSES):
            place = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
            name = f"lo:{number}".encode()
            fcntl.ioctl(sock, _SIOCSIFADDR, struct.pack("=16s16s8x", name, place))
