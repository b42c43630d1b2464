"""Client certificates: who comes in, who does not, and what the log tells of it."""

from __future__ import annotations

import select
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from cryptography.hazmat.primitives import hashes

from harness.backends import Backend
from harness.clients import connect, echoes, trusting
from harness.pki import DAY, NOW, Identity, issue
from harness.target import silent_target, target_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Certificates, Serve
    from harness.instance import Instance

VERSIONS: Final = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
NAMES: Final = {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}


def asking(mode: str, *trusted: Path) -> str:
    """Give a listener's YAML that asks for client certificates."""
    files = ", ".join(f"'{path}'" for path in trusted)
    return f"    client-auth: {{mode: {mode}, trusted-certs: [{files}]}}"


def showing(
    certificates: Certificates, tmp_path: Path, version: ssl.TLSVersion, identity: Identity | None
) -> ssl.SSLContext:
    """Make a client that shows a certificate, or none."""
    context = trusting(certificates.ca, version)
    if identity is not None:
        context.load_cert_chain(*identity.write(tmp_path, "client"))
    return context


def fingerprint(identity: Identity) -> str:
    """Give the SHA-256 fingerprint, without separators."""
    return identity.certificate.fingerprint(hashes.SHA256()).hex()


def assert_granted(handfast: Instance, identity: Identity) -> None:
    """Check the event of a certificate that was taken."""
    event = handfast.wait("auth", subevent="mtls", outcome="granted")
    assert event["client_cert_fingerprint"].replace(":", "").lower() == fingerprint(identity)
    assert event["client_cert_subject"] == identity.certificate.subject.rfc4514_string()
    assert event["client_cert_issuer"] == identity.certificate.issuer.rfc4514_string()
    assert "alert" not in event


@dataclass(frozen=True)
class Refusal:
    """What a client that is refused meets."""

    identity: Identity | None
    alert: str
    said: str
    """What the error on the client's side has to contain."""


def refusals(certificates: Certificates) -> dict[str, Refusal]:
    """Give each bad certificate, and what it gets."""
    expired = issue(
        "late", certificates.root, client=True, not_before=NOW - 9 * DAY, not_after=NOW - DAY
    )
    early = issue(
        "early", certificates.root, client=True, not_before=NOW + DAY, not_after=NOW + 9 * DAY
    )
    stranger = issue("stranger", issue("other root", ca=True), client=True)
    return {
        "expired": Refusal(expired, "certificate_expired", "certificate expired"),
        "not yet valid": Refusal(early, "bad_certificate", "bad certificate"),
        "of another CA": Refusal(stranger, "unknown_ca", "unknown ca"),
        "self-signed": Refusal(issue("self", client=True), "unknown_ca", "unknown ca"),
        "of a server": Refusal(certificates.server, "unsupported_certificate", "unsupported cert"),
    }  # fmt: skip


@pytest.fixture
def unvisited() -> Iterator[socket.socket]:
    """A listening socket that nobody should connect to."""
    with silent_target() as listening:
        yield listening


def refused(
    handfast: Instance, context: ssl.SSLContext, version: ssl.TLSVersion, said: str
) -> dict[str, str]:
    """Connect and be refused, with this in the error; give the event."""
    with pytest.raises(ssl.SSLError) as caught, connect(handfast.port(), context) as client:
        client.recv(1)  # in TLS 1.3 the client is done before the server has looked
    assert said.replace(" ", "").lower() in str(caught.value).replace(" ", "").lower()
    events = handfast.wait("auth")
    assert len(handfast.events("auth")) == 1
    assert events["offered_versions"] == NAMES[version]
    return events


def assert_no_visit(handfast: Instance, unvisited: socket.socket) -> None:
    """Check that nothing reached the target, nor a relay."""
    assert not select.select([unvisited], [], [], 0)[0]
    assert not handfast.events("proxy")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["require", "optional"])
def test_a_good_certificate_is_granted(
    serve: Serve,
    backend: Backend,
    certificates: Certificates,
    tmp_path: Path,
    mode: str,
    version: ssl.TLSVersion,
) -> None:
    handfast = serve(backend.target, listener=asking(mode, certificates.ca))
    identity = certificates.client("alice", certificates.intermediate)
    with connect(handfast.port(), showing(certificates, tmp_path, version, identity)) as client:
        assert echoes(client)
        client.unwrap().close()

    assert_granted(handfast, identity)
    handfast.wait("auth", subevent="handshake", outcome="granted", tls_version=NAMES[version])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_missing_certificate_is_denied_where_one_is_required(
    serve: Serve,
    unvisited: socket.socket,
    certificates: Certificates,
    tmp_path: Path,
    version: ssl.TLSVersion,
) -> None:
    handfast = serve(target_of(unvisited), listener=asking("require", certificates.ca))
    context = showing(certificates, tmp_path, version, None)
    is_13 = version is ssl.TLSVersion.TLSv1_3
    said = "certificate required" if is_13 else "handshake failure"
    event = refused(handfast, context, version, said)

    assert (event["subevent"], event["outcome"]) == ("mtls", "denied")
    alert = "certificate_required" if is_13 else "handshake_failure"
    assert event["alert"] == f"{alert} sent"
    assert "client_cert_subject" not in event
    assert_no_visit(handfast, unvisited)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_missing_certificate_is_fine_where_it_is_optional(
    serve: Serve,
    backend: Backend,
    certificates: Certificates,
    tmp_path: Path,
    version: ssl.TLSVersion,
) -> None:
    handfast = serve(backend.target, listener=asking("optional", certificates.ca))
    with connect(handfast.port(), showing(certificates, tmp_path, version, None)) as client:
        assert echoes(client)
        client.unwrap().close()

    handfast.wait("proxy", subevent="client_disconnect")
    assert not handfast.events("auth", subevent="mtls")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["require", "optional"])
@pytest.mark.parametrize(
    "fault", ["expired", "not yet valid", "of another CA", "self-signed", "of a server"]
)
def test_a_bad_certificate_is_denied_even_where_none_is_needed(
    serve: Serve,
    unvisited: socket.socket,
    certificates: Certificates,
    tmp_path: Path,
    fault: str,
    mode: str,
    version: ssl.TLSVersion,
) -> None:
    refusal = refusals(certificates)[fault]
    identity = refusal.identity
    assert identity is not None
    handfast = serve(target_of(unvisited), listener=asking(mode, certificates.ca))
    context = showing(certificates, tmp_path, version, identity)
    event = refused(handfast, context, version, refusal.said)

    assert (event["subevent"], event["outcome"]) == ("mtls", "denied")
    assert event["alert"] == f"{refusal.alert} sent"
    assert event["client_cert_fingerprint"].replace(":", "").lower() == fingerprint(identity)
    assert event["client_cert_subject"] == identity.certificate.subject.rfc4514_string()
    assert event["client_cert_issuer"] == identity.certificate.issuer.rfc4514_string()
    assert_no_visit(handfast, unvisited)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pinned_self_signed_leaf_is_granted_and_its_namesake_is_not(
    serve: Serve,
    backend: Backend,
    certificates: Certificates,
    tmp_path: Path,
    version: ssl.TLSVersion,
) -> None:
    pinned, namesake = issue("robot", client=True), issue("robot", client=True)
    anchor = tmp_path / "pinned.pem"
    anchor.write_bytes(pinned.pem())
    handfast = serve(backend.target, listener=asking("require", anchor))
    with connect(handfast.port(), showing(certificates, tmp_path, version, pinned)) as client:
        assert echoes(client)
        client.unwrap().close()
    assert_granted(handfast, pinned)

    with (
        pytest.raises(ssl.SSLError),
        connect(handfast.port(), showing(certificates, tmp_path, version, namesake)) as client,
    ):
        client.recv(1)
    denied = handfast.wait("auth", subevent="mtls", outcome="denied")
    assert denied["client_cert_fingerprint"].replace(":", "").lower() == fingerprint(namesake)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_intermediate_is_an_anchor_without_its_root(
    serve: Serve,
    backend: Backend,
    certificates: Certificates,
    tmp_path: Path,
    version: ssl.TLSVersion,
) -> None:
    anchor = tmp_path / "intermediate.pem"
    anchor.write_bytes(certificates.intermediate.pem())
    handfast = serve(backend.target, listener=asking("require", anchor))
    below = certificates.client("below", certificates.intermediate)
    with connect(handfast.port(), showing(certificates, tmp_path, version, below)) as client:
        assert echoes(client)
        client.unwrap().close()
    assert_granted(handfast, below)

    beside = certificates.client("beside", certificates.root)
    with (
        pytest.raises(ssl.SSLError),
        connect(handfast.port(), showing(certificates, tmp_path, version, beside)) as client,
    ):
        client.recv(1)
    handfast.wait("auth", subevent="mtls", outcome="denied")
