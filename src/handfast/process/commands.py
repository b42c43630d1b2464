"""The control socket: a Unix socket of mode 0600 that takes one command a connection.

A request is one line of JSON, `{"command": "status"}`; the answer is one line of JSON, and after
it the connection closes. For `stop` it closes when handfast has ended, so that whoever asked can
wait. Only the owner and root can connect; what they send is parsed all the same.
"""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Final, Literal

import msgspec

from handfast.errors import HandfastError
from handfast.observe.status import Status

MAX_REQUEST: Final = 4096
_MAX_ANSWER: Final = 1 << 26
_TIMEOUT: Final = 10.0
_CHANGE_TIMEOUT: Final = 300.0

_CHANGES: Final = ("reload", "upgrade", "rebalance")


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A command to a running handfast. `python` is the interpreter to upgrade to, if another."""

    command: Literal["status", "reload", "upgrade", "rebalance", "stop"]
    python: str = ""


class Upgraded(msgspec.Struct, frozen=True):
    """What came of an upgrade: the versions, and the connections that were moved.

    `longest_stall` is how long one of them stood still at most, and `p99_stall` what 99 of 100 were
    below, by the bounds of a histogram; all in seconds. `died` tells of processes that ended on the
    way other than they should, with what they held. `waiting` counts connections that had no room
    yet at the end (descriptors), and that are served when there is.
    """

    before: str
    after: str
    moved: int
    longest_stall: float
    p99_stall: float
    seconds: float
    died: tuple[str, ...] = ()
    waiting: int = 0


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a request: an error, or what was asked for.

    `wrong_configuration` says that the error is one for each line, and the user's to mend.
    """

    error: str = ""
    wrong_configuration: bool = False
    status: Status | None = None
    upgraded: Upgraded | None = None
    moved: int | None = None


def state_directory() -> Path:
    """Give the directory for what outlives a run (XDG_STATE_HOME)."""
    home = os.environ.get("XDG_STATE_HOME") or ""
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "state"
    return base / "handfast"


def control_path(config: str | None) -> Path:
    """Derive the control socket of a configuration file, or of the embedded default.

    Both sides of the socket derive it from the file's real path, so `-c FILE` is all they need.
    Root's is under /run, another user's under XDG_RUNTIME_DIR or else the state directory.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR") or ""
    if os.geteuid() == 0:
        directory = Path("/run/handfast")
    elif Path(runtime).is_absolute():
        directory = Path(runtime) / "handfast"
    else:
        directory = state_directory()
    if config is None:
        return directory / "default.sock"
    digest = hashlib.sha256(os.fsencode(Path(config).resolve())).hexdigest()
    return directory / f"{digest[:16]}.sock"


def ask(path: Path, request: Request, *, wait: bool = False) -> Answer:
    """Send a command and give the answer; with `wait`, only when handfast has ended.

    Raises HandfastError when no handfast listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CHANGE_TIMEOUT if request.command in _CHANGES else _TIMEOUT)
        try:
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode(request) + b"\n")
            data = _read_line(connection)
            if wait:
                connection.settimeout(None)
                connection.recv(1)
        except (FileNotFoundError, ConnectionRefusedError):
            raise HandfastError(
                f"no handfast is running with this configuration (nothing listens on {path})"
            ) from None
        except OSError as error:
            raise HandfastError(f"{path}: {error.strerror or error}") from None
    try:
        return msgspec.json.decode(data, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HandfastError(f"{path}: the answer makes no sense: {error}") from None


def _read_line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < _MAX_ANSWER:
        piece = connection.recv(65536)
        if not piece:
            break
        data += piece
    return data
