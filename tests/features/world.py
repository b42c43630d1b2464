"""What the tests of reloads share: clients of a CA of their own, and what a client sees."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.clients import connect, read_to_end, trusting
from harness.pki import Identity

if TYPE_CHECKING:
    from harness.front import Front


@dataclass
class World:
    """What the files of a test are made of."""

    directory: Path
    ca: Path
    root: Identity
    alice: Identity
    bob: Identity

    def shows(self, identity: Identity) -> ssl.SSLContext:
        context = trusting(self.ca)
        context.load_cert_chain(*identity.write(self.directory, "client"))
        return context

    def file(self, name: str, data: bytes) -> str:
        path = self.directory / name
        path.write_bytes(data)
        return str(path)


def auth_of(world: World, **more: Any) -> dict[str, Any]:
    file = world.file("clients.pem", world.root.pem())
    return {"mode": "optional", "trusted-certs": [file], **more}


def greeting(front: Front, context: ssl.SSLContext, number: int = 0) -> str:
    with connect(front.port(number), context) as client:
        return read_to_end(client).decode()


def seen(front: Front, context: ssl.SSLContext) -> bytes | None:
    with connect(front.port(), context) as client:
        return client.getpeercert(binary_form=True)
