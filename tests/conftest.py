"""Fixtures: one set of certificates for the whole run, and handfast on demand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.backends import Backend
from harness.homes import IN_GUEST, KERNEL_TLS
from harness.instance import Instance
from harness.pki import Identity, issue


class Certificates:
    """A root, an intermediate, and a server identity below it, as values and as files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = issue("test root", ca=True)
        self.intermediate = issue("test intermediate", self.root, ca=True)
        self.server = issue("localhost", self.intermediate)
        self.rsa_server = issue("localhost", self.intermediate, kind="rsa")
        self.ca = directory / "root.pem"
        self.ca.write_bytes(self.root.pem())
        self.chain, self.key = self.server.write(directory, "server")
        self.rsa_chain, self.rsa_key = self.rsa_server.write(directory, "rsa")

    def client(self, name: str = "a client", issuer: Identity | None = None) -> Identity:
        return issue(name, issuer or self.root, client=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user can reach, `nobody` too: pytest's own are for their owner."""
    with tempfile.TemporaryDirectory(prefix="handfast-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


@pytest.fixture
def backend() -> Iterator[Backend]:
    """A backend that echoes."""
    with Backend() as running:
        yield running


Serve = Callable[..., Instance]


@pytest.fixture
def serve(tmp_path: Path, certificates: Certificates) -> Iterator[Serve]:
    """Start handfast: `serve(target, extra="", listener="", chain=..., key=...)`.

    `extra` is YAML for the top level, `listener` for the listener (indented by four spaces).
    """
    with ExitStack() as stack:
        started = 0

        def start(
            target: str,
            *,
            extra: str = "",
            listener: str = "",
            listen: str = "127.0.0.1:0",
            chain: Path = certificates.chain,
            key: Path = certificates.key,
            nworkers: int = 1 if IN_GUEST else 2,
        ) -> Instance:
            nonlocal started
            started += 1
            config = tmp_path / f"handfast-{started}.yaml"
            if "kernel-tls:" not in listener and not listen.startswith("unix:"):
                listener += f"\n    kernel-tls: {KERNEL_TLS}"
            config.write_text(
                f"nworkers: {nworkers}\ncontrol: {tmp_path}/control-{started}.sock\n{extra}\n"
                f"listeners:\n  - listen: '{listen}'\n    target: '{target}'\n"
                f"    certificates:\n      - chain: {chain}\n        key: {key}\n"
                f"{listener}\n"
            )
            return stack.enter_context(Instance(config))

        yield start
