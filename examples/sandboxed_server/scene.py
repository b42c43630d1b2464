"""What everybody on the stage knows before it begins. There is no secret in it, and no key."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from handfast.process.development import DevelopmentCertificate
from handfast.process.isolation import Identity

PATIENCE: Final = 10.0
"""Seconds that one waits for another, and that the whole show may take."""


class Scene(Struct, frozen=True):
    """The files, whom the three processes become, the port (0: any), and whether there is TLS."""

    files: DevelopmentCertificate
    identity: Identity
    clear: bool = False
    port: int = 0
