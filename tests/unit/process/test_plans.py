from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from conftest import Certificates
from handfast.config import (
    ClientAuth,
    Config,
    Route,
    Service,
    Target,
    TargetTls,
    TcpAddress,
    Timeouts,
    UnixAddress,
)
from handfast.errors import HandfastError
from handfast.process.credentials import load_all
from handfast.process.listeners import Listeners
from handfast.process.plans import make_plan
from handfast.relay.plan import Plan, decode, encode
from handfast.transport.kernel import Support
from harness.pki import NOW
from unit.policy.authority import der
from unit.process.household import LOCAL, config_of, listener_of


@pytest.fixture
def made(certificates: Certificates, tmp_path: Path) -> tuple[Config, Plan]:
    tls = TargetTls(trusted_certs=(str(certificates.ca),))
    target = Target(address=TcpAddress(host="backend", port=80), tls=tls)
    route = Route(sni=("*.example.com",), service=Service(targets=(target,)))
    asking = ClientAuth(mode="optional", trusted_certs=(str(certificates.ca),))
    unix = UnixAddress(path=str(tmp_path / "front.sock"))
    first = listener_of(certificates, "first")
    second = listener_of(certificates, "second", unix)
    config = msgspec.structs.replace(
        config_of(
            certificates,
            first,
            msgspec.structs.replace(second, client_auth=asking, routes=(route,)),
        ),
        timeouts=Timeouts(idle=5.0),
        loglevel="DEBUG",
        nworkers=3,
    )
    listeners = Listeners(lambda _: None)
    listeners.open(config_of(certificates, listener_of(certificates, "before")))
    bound = listeners.open(config)
    plan = make_plan(7, config, bound, load_all(config, NOW), Support())
    listeners.close()
    return config, plan


def test_a_plan_has_what_relays_go_by(
    made: tuple[Config, Plan], certificates: Certificates
) -> None:
    config, plan = made

    assert (plan.generation, plan.relays, plan.loglevel) == (7, 3, "DEBUG")
    assert plan.timeouts == config.timeouts
    first, second = plan.listeners[1], plan.listeners[2]
    assert (first.name, first.listen_ip, first.family) == ("first", LOCAL, socket.AF_INET)
    assert first.listen_port > 0
    assert first.service == config.listeners[0].service
    assert first.clients.mode == "none"
    assert second.listen_ip == str(config.listeners[1].address)
    assert (second.listen_port, second.family) == (0, socket.AF_UNIX)
    assert second.routes == config.listeners[1].routes
    assert second.clients.mode == "optional"
    assert second.clients.anchors == der(certificates.root.certificate)
    assert plan.anchors == {str(certificates.ca): der(certificates.root.certificate)}


def test_a_plan_comes_back_as_it_was(made: tuple[Config, Plan]) -> None:
    assert decode(encode(made[1])) == made[1]


def test_a_plan_has_no_private_key(made: tuple[Config, Plan], certificates: Certificates) -> None:
    data = encode(made[1])
    numbers = certificates.server.key.private_numbers()
    assert isinstance(numbers, ec.EllipticCurvePrivateNumbers)

    assert b"PRIVATE KEY" not in data
    assert str(certificates.key).encode() not in data
    assert numbers.private_value.to_bytes(32, "big") not in data


def test_what_is_no_plan_is_refused(made: tuple[Config, Plan]) -> None:
    data = encode(made[1])

    for wrong in (b"", b"\x00", data[:-1], data + b"\x00"):
        with pytest.raises(HandfastError, match="malformed plan"):
            decode(wrong)
