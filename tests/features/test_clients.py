"""Who may connect, by client certificate: rules, revocation, resumption, and what the log says."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from harness.clients import connect, echoes, trusting
from harness.homes import TIMEOUT
from harness.instance import wait_for
from harness.pki import Identity, issue, revocation_list

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Certificates
    from features.conftest import Start, Targets
    from harness.front import Front

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def alice_of(issuer: Identity) -> Identity:
    """Issue a client's certificate with every kind of name."""
    names: list[x509.GeneralName] = [
        x509.DNSName("alice.example.com"),
        x509.RFC822Name("alice@example.com"),
        x509.UniformResourceIdentifier("spiffe://example.org/ops/alice"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.7")),
    ]
    return issue("alice", issuer, client=True, unit="ops", names=names)


def bob_of(issuer: Identity) -> Identity:
    """Issue another's, which has the same kinds of names."""
    names: list[x509.GeneralName] = [
        x509.DNSName("bob.example.net"),
        x509.RFC822Name("bob@example.net"),
        x509.UniformResourceIdentifier("spiffe://example.org/dev/bob"),
        x509.IPAddress(ipaddress.ip_address("198.51.100.7")),
    ]
    return issue("bob", issuer, client=True, unit="dev", names=names)


@dataclass(frozen=True)
class People:
    """Two clients of one CA; `shows` makes a client that shows a certificate."""

    ca: Path
    root: Identity
    alice: Identity
    bob: Identity
    directory: Path

    def shows(self, identity: Identity, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = trusting(self.ca, version)
        context.load_cert_chain(*identity.write(self.directory, "client"))
        return context


@pytest.fixture
def people(certificates: Certificates, tmp_path: Path) -> People:
    root = certificates.root
    return People(certificates.ca, root, alice_of(root), bob_of(root), tmp_path)


def asking(people: People, *rules: object, mode: str = "require", **more: object) -> dict[str, Any]:
    """Give a listener's settings that ask for certificates."""
    auth = {"mode": mode, "trusted-certs": [str(people.ca)], **more}
    return {**auth, "rules": list(rules)} if rules else auth


def is_served(front: Front, context: ssl.SSLContext) -> bool:
    with connect(front.port(), context) as client:
        return echoes(client)


def refusal(front: Front, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> str:
    """Connect and be refused; give what the alert was, in words."""
    with pytest.raises(ssl.SSLError) as caught, connect(front.port(), context, session) as client:
        client.recv(1)  # in TLS 1.3 the client is done before the server has looked
    return str(caught.value).lower().replace("_", " ")


def spki(identity: Identity) -> str:
    public = identity.certificate.public_key()
    data = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(data).hexdigest()


FIELDS = ["cn", "ou", "dns", "uri", "email", "spiffe", "ip", "fingerprint", "spki"]


def alices(field: str, alice: Identity) -> str:
    """Give a value of a rule's field that is Alice's and not Bob's."""
    return {
        "cn": "al?ce",
        "ou": "ops",
        "dns": "*.example.com",
        "uri": "spiffe://*/ops/**",
        "email": "*@example.com",
        "spiffe": "spiffe://example.org/ops/*",
        "ip": "192.0.2.0/24",
        "fingerprint": alice.certificate.fingerprint(hashes.SHA256()).hex(":"),
        "spki": spki(alice),
    }[field]


@pytest.mark.parametrize("field", FIELDS)
def test_whom_a_rule_allows_by_a_field_comes_in_and_nobody_else(
    start: Start, targets: Targets, people: People, field: str
) -> None:
    rule = {"allow": {field: alices(field, people.alice)}}
    front = start({"target": targets.echo(), "client_auth": asking(people, rule)})

    assert is_served(front, people.shows(people.alice))
    assert "access denied" in refusal(front, people.shows(people.bob))

    denied = front.wait("auth", outcome="denied")
    assert (denied["subevent"], denied["reason"]) == ("mtls", "no_rule")
    assert denied["alert"] == "access_denied sent"
    assert denied["client_cert_subject"] == people.bob.certificate.subject.rfc4514_string()


@pytest.mark.parametrize("field", FIELDS)
def test_whom_a_rule_denies_by_a_field_stays_out_and_nobody_else(
    start: Start, targets: Targets, people: People, field: str
) -> None:
    rules = {"deny": {field: alices(field, people.alice)}}, {"allow": "any"}
    front = start({"target": targets.echo(), "client_auth": asking(people, *rules)})

    assert is_served(front, people.shows(people.bob))
    assert "access denied" in refusal(front, people.shows(people.alice))

    denied = front.wait("auth", outcome="denied")
    assert (denied["subevent"], denied["reason"]) == ("mtls", "rule_denied")
    assert "deny" in denied["error_msg"]


def test_the_first_rule_that_applies_decides(
    start: Start, targets: Targets, people: People
) -> None:
    rules = {"allow": {"cn": "alice"}}, {"deny": {"ou": ["ops", "dev"]}}, {"allow": "any"}
    front = start({"target": targets.echo(), "client_auth": asking(people, *rules)})

    assert is_served(front, people.shows(people.alice))
    assert "access denied" in refusal(front, people.shows(people.bob))


def test_every_field_of_a_rule_has_to_match(start: Start, targets: Targets, people: People) -> None:
    rule = {"allow": {"ou": ["ops", "dev"], "dns": "*.example.com"}}
    front = start({"target": targets.echo(), "client_auth": asking(people, rule)})

    assert is_served(front, people.shows(people.alice))
    assert "access denied" in refusal(front, people.shows(people.bob))


def test_rules_are_each_listeners_own(start: Start, targets: Targets, people: People) -> None:
    target = targets.echo()
    front = start(
        {"target": target, "client_auth": asking(people, {"allow": {"cn": "alice"}})},
        {"target": target, "client_auth": asking(people, {"allow": {"cn": "bob"}})},
    )

    with connect(front.port(1), people.shows(people.bob)) as client:
        assert echoes(client)


def test_where_a_certificate_is_optional_rules_are_for_those_who_show_one(
    start: Start, targets: Targets, people: People
) -> None:
    auth = asking(people, {"allow": {"cn": "alice"}}, mode="optional")
    front = start({"target": targets.echo(), "client_auth": auth})

    assert is_served(front, trusting(people.ca))
    assert "access denied" in refusal(front, people.shows(people.bob))


def test_explain_names_the_rule_that_handfast_goes_by(
    start: Start, targets: Targets, people: People
) -> None:
    rules = {"allow": {"cn": "alice"}}, {"deny": {"ou": "dev"}}
    front = start({"target": targets.echo(), "client_auth": asking(people, *rules)})
    file, _ = people.bob.write(people.directory, "bob")

    refusal(front, people.shows(people.bob))
    told = front.command("check", "--explain", str(file)).stdout

    assert front.wait("auth", outcome="denied")["error_msg"] in told


@pytest.mark.parametrize("version", VERSIONS)
def test_a_revoked_certificate_is_denied_with_its_alert_and_others_are_not(
    start: Start, targets: Targets, people: People, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    crl = tmp_path / "list.pem"
    crl.write_bytes(revocation_list(people.root, people.bob))
    auth = asking(people, crls=[str(crl)])
    front = start({"target": targets.echo(), "client_auth": auth})

    assert is_served(front, people.shows(people.alice, version))
    said = refusal(front, people.shows(people.bob, version))

    assert "certificate revoked" in said
    denied = front.wait("auth", outcome="denied")
    assert denied["reason"] == "certificate_revoked"
    assert denied["alert"] == "certificate_revoked sent"


def test_openssl_s_client_hears_that_its_certificate_is_revoked(
    start: Start, targets: Targets, people: People, tmp_path: Path
) -> None:
    crl = tmp_path / "list.pem"
    crl.write_bytes(revocation_list(people.root, people.bob))
    auth = asking(people, crls=[str(crl)])
    front = start({"target": targets.echo(), "client_auth": auth})
    chain, key = people.bob.write(tmp_path, "bob")

    where = f"127.0.0.1:{front.port()}"
    command = ["openssl", "s_client", "-connect", where, "-cert", str(chain), "-key", str(key)]
    done = subprocess.run(
        [*command, "-ign_eof"], input=b"", capture_output=True, timeout=TIMEOUT, check=False
    )

    assert b"certificate revoked" in done.stderr


def test_gnutls_cli_hears_that_it_is_denied(
    start: Start, targets: Targets, people: People, tmp_path: Path
) -> None:
    front = start(
        {"target": targets.echo(), "client_auth": asking(people, {"allow": {"cn": "alice"}})}
    )
    chain, key = people.bob.write(tmp_path, "bob")

    command = ["gnutls-cli", "--x509cafile", str(people.ca), "--x509certfile", str(chain)]
    done = subprocess.run(
        [*command, "--x509keyfile", str(key), "-p", str(front.port()), "localhost"],
        input=b"hello\n",
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )

    assert done.returncode != 0
    assert b"Access was denied" in done.stdout + done.stderr


def test_curl_with_an_allowed_certificate_is_served(
    start: Start, targets: Targets, people: People, tmp_path: Path
) -> None:
    rule = {"allow": {"spiffe": "spiffe://example.org/ops/*"}}
    front = start({"target": targets.says("hello"), "client_auth": asking(people, rule)})
    chain, key = people.alice.write(tmp_path, "alice")

    command = ["curl", "-s", "--http0.9", "--cacert", str(people.ca), "--cert", str(chain)]
    done = subprocess.run(
        [*command, "--key", str(key), f"https://localhost:{front.port()}/"],
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )

    assert done.stdout == b"hello"


def ticket(front: Front, context: ssl.SSLContext) -> ssl.SSLSession:
    """Connect, and give what resumes the session."""
    with connect(front.port(), context) as client:
        assert echoes(client)
        session = client.session
        assert session is not None
        assert session.has_ticket
        client.unwrap().close()
        return session


@pytest.mark.parametrize("version", VERSIONS)
def test_an_allowed_client_resumes_and_is_known_by_its_certificate(
    start: Start, targets: Targets, people: People, version: ssl.TLSVersion
) -> None:
    rule = {"allow": {"cn": "alice"}}
    front = start({"target": targets.echo(), "client_auth": asking(people, rule)})
    context = people.shows(people.alice, version)
    session = ticket(front, context)

    with connect(front.port(), context, session) as client:
        assert echoes(client)
        assert client.session_reused

    front.wait("auth", subevent="handshake", outcome="granted", resumed="true")
    told = front.wait("auth", 2, subevent="mtls", outcome="granted")
    assert told["client_cert_subject"] == people.alice.certificate.subject.rfc4514_string()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_ticket_does_not_outlive_the_certificate_that_it_was_given_for(
    start: Start, targets: Targets, people: People, version: ssl.TLSVersion
) -> None:
    end = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(seconds=3)
    late = issue("late", people.root, client=True, not_after=end)
    front = start({"target": targets.echo(), "client_auth": asking(people)})
    context = people.shows(late, version)
    session = ticket(front, context)
    wait_for(lambda: datetime.datetime.now(datetime.UTC) > end + datetime.timedelta(seconds=1), "")

    assert "certificate expired" in refusal(front, context, session)

    assert front.wait("auth", outcome="denied")["reason"] == "certificate_expired"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["rule", "crl"])
def test_a_ticket_is_worth_nothing_to_a_client_that_a_reload_denies(
    start: Start,
    targets: Targets,
    people: People,
    tmp_path: Path,
    version: ssl.TLSVersion,
    how: str,
) -> None:
    front = start({"target": targets.echo(), "client_auth": asking(people, {"allow": "any"})})
    context = people.shows(people.bob, version)
    session = ticket(front, context)
    crl = tmp_path / "list.pem"
    crl.write_bytes(revocation_list(people.root, people.bob))
    changed = (
        asking(people, {"deny": {"cn": "bob"}}, {"allow": "any"})
        if how == "rule"
        else asking(people, crls=[str(crl)])
    )
    front.reloaded(client_auth=changed)

    said = refusal(front, context, session)

    assert ("access denied" if how == "rule" else "certificate revoked") in said
    reason = "rule_denied" if how == "rule" else "certificate_revoked"
    assert front.wait("auth", outcome="denied")["reason"] == reason


def test_a_client_that_does_not_trust_the_server_has_failed_and_is_not_denied(
    start: Start, targets: Targets, people: People
) -> None:
    front = start({"target": targets.echo(), "client_auth": asking(people)})

    with pytest.raises(ssl.SSLCertVerificationError):
        connect(front.port(), ssl.create_default_context())

    failed = front.wait("auth")
    assert failed["outcome"] == "failed"
    assert failed["alert"] == "unknown_ca received"


def test_a_client_without_a_certificate_is_denied_where_one_is_required(
    start: Start, targets: Targets, people: People
) -> None:
    front = start({"target": targets.echo(), "client_auth": asking(people)})

    assert "certificate required" in refusal(front, trusting(people.ca))

    assert front.wait("auth")["outcome"] == "denied"


def test_denied_clients_reach_no_target(start: Start, targets: Targets, people: People) -> None:
    auth = asking(people, {"deny": "any"})
    front = start({"target": targets.echo(), "client_auth": auth})

    refusal(front, people.shows(people.alice))

    front.wait("auth", outcome="denied")
    assert not front.events("proxy")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stricter", ["a certificate", "another CA", "another rule"])
def test_a_ticket_of_one_listener_opens_no_door_of_another(
    start: Start, targets: Targets, people: People, tmp_path: Path, version: ssl.TLSVersion,
    stricter: str,
) -> None:  # fmt: skip
    other = tmp_path / "other.pem"
    other.write_bytes(issue("other root", ca=True).pem())
    asked = {
        "a certificate": asking(people),
        "another CA": {"mode": "require", "trusted-certs": [str(other)]},
        "another rule": asking(people, {"allow": {"cn": "alice"}}),
    }[stricter]
    target = targets.echo()
    front = start(
        {"target": target, "client_auth": asking(people, mode="optional")},
        {"target": target, "client_auth": asked},
    )
    named = stricter != "a certificate"
    context = people.shows(people.bob, version) if named else trusting(people.ca, version)
    session = ticket(front, context)

    with pytest.raises(ssl.SSLError), connect(front.port(1), context, session) as client:
        client.recv(1)

    assert front.wait("auth", outcome="denied")["listen_port"] == str(front.port(1))
    assert not front.events("proxy", listen_port=str(front.port(1)))
