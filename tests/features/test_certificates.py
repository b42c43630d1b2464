"""Which certificate a client is shown: by the name that it asks for, and by what it can verify."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from harness.clients import connect
from harness.homes import TIMEOUT
from harness.pki import Identity, issue

if TYPE_CHECKING:
    from conftest import Certificates
    from features.conftest import Shown, Start, Targets
    from harness.front import Front


def server(certificates: Certificates, *names: str, kind: str = "ecdsa") -> Identity:
    """Issue a certificate for exactly these names."""
    alternative = [x509.DNSName(each) for each in names]
    return issue(names[0], certificates.intermediate, names=alternative, kind=kind)


def der(identity: Identity) -> bytes:
    return identity.certificate.public_bytes(Encoding.DER)


def shown_to(front: Front, context: ssl.SSLContext, name: str) -> bytes | None:
    """Give the certificate that a client sees that asks for a name."""
    with connect(front.port(), context, name=name) as client:
        return client.getpeercert(binary_form=True)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("www.example.com", 1),
        ("WWW.Example.COM", 1),
        ("mail.example.com", 2),
        ("a.mail.example.com", 0),
        ("example.com", 0),
        ("alias.example.net", 1),
        ("localhost", 0),
        ("127.0.0.1", 0),  # no name is sent for an address
    ],
)
def test_the_name_that_a_client_asks_for_picks_the_certificate(
    start: Start,
    targets: Targets,
    certificates: Certificates,
    shown: Shown,
    nameless: ssl.SSLContext,
    asked: str,
    expected: int,
) -> None:
    identities = [
        certificates.server,
        server(certificates, "www.example.com", "alias.example.net"),
        server(certificates, "*.example.com"),
    ]
    front = start({"target": targets.echo(), "certificates": [shown(each) for each in identities]})

    assert shown_to(front, nameless, asked) == der(identities[expected])


def test_a_client_without_sni_is_shown_the_first_certificate(
    start: Start, targets: Targets, certificates: Certificates, shown: Shown
) -> None:
    identities = [server(certificates, "first.example"), server(certificates, "second.example")]
    front = start({"target": targets.echo(), "certificates": [shown(each) for each in identities]})

    assert s_client(front, "-noservername") == identities[0].certificate


def test_each_certificate_comes_with_its_own_chain(
    start: Start, targets: Targets, certificates: Certificates, shown: Shown
) -> None:
    other_root = issue("other root", ca=True)
    other = issue("other.example", issue("other intermediate", other_root, ca=True))
    front = start(
        {"target": targets.echo(), "certificates": [shown(certificates.server), shown(other)]}
    )
    context = ssl.create_default_context(cadata=other_root.pem().decode())

    assert shown_to(front, context, "other.example") == der(other)


def s_client(front: Front, options: str) -> x509.Certificate:
    """Give the certificate that `openssl s_client` is shown."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{front.port()}", *options.split()],
        input=b"",
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    )
    return x509.load_pem_x509_certificate(done.stdout)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("-tls1_3 -sigalgs rsa_pss_rsae_sha256", "rsa"),
        ("-tls1_3 -sigalgs ECDSA+SHA256", "ecdsa"),
        ("-tls1_3 -sigalgs rsa_pss_rsae_sha256:ECDSA+SHA256", "rsa"),  # what it prefers
        ("-tls1_3 -sigalgs ECDSA+SHA256:rsa_pss_rsae_sha256", "ecdsa"),
        ("-tls1_2 -sigalgs RSA+SHA256", "rsa"),
        ("-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256", "rsa"),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", "ecdsa"),
    ],
)
def test_rsa_and_ecdsa_stand_side_by_side_and_the_client_gets_what_it_can_verify(
    start: Start,
    targets: Targets,
    certificates: Certificates,
    shown: Shown,
    options: str,
    kind: str,
) -> None:
    identities = {
        "default": certificates.server,
        "rsa": server(certificates, "both.example", kind="rsa"),
        "ecdsa": server(certificates, "both.example"),
    }
    front = start(
        {"target": targets.echo(), "certificates": [shown(each) for each in identities.values()]}
    )

    found = s_client(front, f"-servername both.example {options}")

    assert found == identities[kind].certificate


def test_a_client_that_can_verify_no_certificate_of_the_name_is_refused(
    start: Start, targets: Targets, certificates: Certificates, shown: Shown
) -> None:
    front = start({"target": targets.echo(), "certificates": [shown(certificates.server)]})

    with pytest.raises(subprocess.CalledProcessError) as failed:
        s_client(front, "-servername localhost -tls1_3 -sigalgs rsa_pss_rsae_sha256")

    assert b"handshake failure" in failed.value.stderr
    assert front.wait("auth", outcome="denied")["alert"] == "handshake_failure sent"


def test_two_listeners_have_certificates_of_their_own(
    start: Start,
    targets: Targets,
    certificates: Certificates,
    shown: Shown,
    nameless: ssl.SSLContext,
) -> None:
    target, other = targets.echo(), server(certificates, "other.example")
    front = start({"target": target}, {"target": target, "certificates": [shown(other)]})

    with connect(front.port(1), nameless) as client:
        assert client.getpeercert(binary_form=True) == der(other)
