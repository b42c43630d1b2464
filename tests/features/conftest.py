"""Fixtures: handfast with any configuration, and certificates that are made as they are needed."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from features.world import World
from harness.backends import Backend, echo
from harness.clients import trusting
from harness.front import Front, dashed
from harness.homes import IN_KERNEL
from harness.pki import Identity, issue

if TYPE_CHECKING:
    from conftest import Certificates

Start = Callable[..., Front]
Shown = Callable[..., dict[str, str]]


class Targets:
    """Targets that run as long as the test does."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def run(self, serve: Callable[[socket.socket], None] = echo, **where: Any) -> Backend:
        """Run one, as `Backend`."""
        return self._stack.enter_context(Backend(serve, **where))

    def echo(self) -> str:
        """Run one that sends back what comes; give its address."""
        return self.run().target

    def says(self, text: str) -> str:
        """Run one that says who it is, and closes; give its address."""
        return self.run(lambda connection: connection.sendall(text.encode())).target


@pytest.fixture
def targets() -> Iterator[Targets]:
    """Run targets: `targets.echo()`, `targets.says("first")`, `targets.run(serve)`."""
    with ExitStack() as stack:
        yield Targets(stack)


@pytest.fixture
def world(certificates: Certificates, tmp_path: Path) -> World:
    root = issue("clients root", ca=True)
    people = (issue(name, root, client=True) for name in ("alice", "bob"))
    return World(tmp_path, certificates.ca, root, *people)


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    """Make a client that trusts the test CA."""
    return trusting(certificates.ca)


@pytest.fixture
def nameless(certificates: Certificates) -> ssl.SSLContext:
    """Make a client that trusts the test CA, whatever name the server's certificate is for."""
    context = trusting(certificates.ca)
    context.check_hostname = False
    return context


@pytest.fixture
def shown(tmp_path: Path) -> Shown:
    """Write an identity's files: `shown(identity)` is an entry for `certificates:`."""
    count = 0

    def write(identity: Identity) -> dict[str, str]:
        nonlocal count
        count += 1
        chain, key = identity.write(tmp_path, f"shown-{count}")
        return {"chain": str(chain), "key": str(key)}

    return write


@pytest.fixture
def start(tmp_path: Path, certificates: Certificates, targets: Targets) -> Iterator[Start]:
    """Start handfast: `start({"target": ...}, {...}, idle_timeout="1s")`.

    Each mapping is a listener, on a free port and with the server certificate unless it says
    otherwise (None is to leave a key out); the keywords are keys of the top level, but for
    `wrapper` and `python`, which are as in `Instance`.
    """
    with ExitStack() as stack:

        def run(
            *listeners: dict[str, Any],
            wrapper: tuple[str, ...] = (),
            python: Path | None = None,
            **top: object,
        ) -> Front:
            options = {"wrapper": wrapper, **({"python": str(python)} if python else {})}
            default: dict[str, Any] = {
                "listen": "127.0.0.1:0",
                "certificates": [{"chain": str(certificates.chain), "key": str(certificates.key)}],
            }
            if IN_KERNEL:
                default["kernel-tls"] = "auto"
            settings = {
                "nworkers": 1,
                "control": str(tmp_path / "control.sock"),
                **dashed(dict(top)),
                "listeners": [_without_none({**default, **dashed(each)}) for each in listeners],
            }
            return stack.enter_context(Front(tmp_path / "handfast.yaml", settings, **options))

        yield run


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}
