"""What the relays go by: one generation of the configuration, with the files' contents in it.

It is made by whoever reads the files and handed to the relays as bytes, so that a relay opens no
file and never sees a private key.
"""

from __future__ import annotations

from typing import Final

import msgspec

from handfast.config import Route, Service, Timeouts
from handfast.errors import HandfastError
from handfast.policy.clients import ClientPolicy
from handfast.transport.kernel import Support


class ListenerPlan(msgspec.Struct, frozen=True):
    """One listener as the relays know it: its address for the log, where its clients go, and who
    may stay. `family` is that of its sockets. `kernel_after` is how many bytes a connection carries
    before it moves into the kernel, -1 for never.
    """

    name: str
    listen_ip: str
    listen_port: int
    family: int
    service: Service | None
    routes: tuple[Route, ...]
    clients: ClientPolicy
    kernel_after: int = -1


class Plan(msgspec.Struct, frozen=True):
    """One generation. `listeners` are by number; a number means the same listener for ever.

    `anchors` are the certificates (DER) in each file that `TargetTls.trusted_certs` names, and
    under the empty name those that the system trusts. `relays` is how many share the limits.
    `kernel` is what the kernel was seen to do. `accounts` are users that targets name, by number.
    """

    generation: int
    listeners: dict[int, ListenerPlan]
    timeouts: Timeouts
    relays: int
    loglevel: str
    anchors: dict[str, tuple[bytes, ...]]
    kernel: Support = Support()
    accounts: dict[str, int] = {}


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Plan)


def encode(plan: Plan) -> bytes:
    """Encode for the relays."""
    return _encoder.encode(plan)


def decode(data: bytes) -> Plan:
    """Read what `encode` wrote; raise HandfastError for anything else."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HandfastError(f"malformed plan: {error}") from None
