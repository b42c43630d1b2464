"""Bind listening sockets, and tell who is in the way when one is taken."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

import msgspec

from handfast.config import Address, Listener, UnixAddress
from handfast.errors import HandfastError

_BACKLOG: Final = 4096
_LISTEN_STATE: Final = "0A"


class Bound(msgspec.Struct, frozen=True):
    """A listener with its socket, its number, and the address that it has got.

    `given` says that the service manager made the socket; its name in the file system is not ours.
    """

    number: int
    listener: Listener
    sock: socket.socket
    ip: str
    port: int
    given: bool = False

    @property
    def text(self) -> str:
        """The address as one writes it: `host:port`, `[v6]:port` or `unix:path`."""
        if self.sock.family == socket.AF_UNIX:
            return self.ip
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


def bind(listener: Listener, number: int, given: socket.socket | None) -> Bound:
    """Make a listener of a socket that was given, or listen; raises HandfastError as that does."""
    sock = given or listen(listener.address)
    if isinstance(listener.address, UnixAddress):
        return Bound(number, listener, sock, str(listener.address), 0, given is not None)
    name = sock.getsockname()
    return Bound(number, listener, sock, name[0], name[1], given is not None)


def listen(address: Address) -> socket.socket:
    """Listen, without blocking; raise HandfastError that names the address, and who holds it."""
    try:
        if isinstance(address, UnixAddress):
            return _bind_unix(address.path)
        return _bind_tcp(address.host, address.port)
    except OSError as error:
        holder = ""
        if error.errno == errno.EADDRINUSE and not isinstance(address, UnixAddress):
            holder = f"; {_holder(address)}"
        raise HandfastError(
            f"cannot listen on {address}: {error.strerror or error}{holder}"
        ) from error


def _bind_tcp(host: str, port: int) -> socket.socket:
    # Every interface: one IPv6 socket takes IPv4 too, where the machine has IPv6.
    both = not host and socket.has_dualstack_ipv6()
    host = host or ("::" if both else "0.0.0.0")  # noqa: S104 - it is what was asked for
    family, *_, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        # Accepted sockets inherit both: no call per connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The client speaks first in TLS: accept when its hello is there, or after a second.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(path: str) -> socket.socket:
    """Bind a Unix socket; a stale one, which nobody listens on, is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if is_stale(path):
            Path(path).unlink()
        sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def is_stale(path: str) -> bool:
    """Tell whether there is a socket at `path` that nobody listens on."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:  # whoever listens may never accept
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _holder(address: object) -> str:
    """Name the socket that is in the way, and its process as far as we may see it."""
    port = getattr(address, "port", 0)
    for ip, inode in _listening(port):
        where = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
        return f"{where} is held by {_process_of(inode) or 'a process of another user'}"
    return "another process has bound it"


def _listening(port: int) -> list[tuple[str, str]]:
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                host, _, number = fields[1].partition(":")
                if fields[3] == _LISTEN_STATE and int(number, 16) == port:
                    found.append((_hex_address(host, family), fields[9]))
    return found


def _hex_address(text: str, family: int) -> str:
    """Read an address of /proc/net/tcp: 32-bit words in the byte order of the machine."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    return socket.inet_ntop(family, b"".join(words))


def _process_of(inode: str) -> str:
    wanted = f"socket:[{inode}]"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(entry.readlink()) == wanted for entry in (process / "fd").iterdir()):
                # The first argument alone: the others are none of the log's business.
                name = (process / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
                return f"{name[:60]} (pid {process.name})"
    return ""
