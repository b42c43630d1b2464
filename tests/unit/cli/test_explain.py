"""`handfast check --explain`: what it prints and how it exits."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto

from harness.pki import DAY, NOW, Identity, issue, new_key
from harness.processes import run_handfast
from unit.policy.authority import certificate, crl

ROOT = issue("root", ca=True)
INTERMEDIATE = issue("intermediate", ROOT, ca=True)
SERVER = issue("localhost", ROOT)
ALICE = issue("alice", INTERMEDIATE, client=True)
MALLORY = issue("mallory.bad", INTERMEDIATE, client=True)
RULES = "[{deny: {cn: '*.bad'}}, {allow: {dns: bob}}, {allow: {dns: 'ali*'}}]"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two listeners that ask, one with rules and a list and one without, and one that does not."""
    SERVER.write(tmp_path, "server")
    (tmp_path / "root.pem").write_bytes(ROOT.pem())
    (tmp_path / "root.crl").write_bytes(crl(ROOT).public_bytes(Encoding.PEM))
    certificates = "certificates: [{chain: server.pem, key: server-key.pem}]"
    common = f"target: tcp://127.0.0.1:9, {certificates}"
    auth = "mode: require, trusted-certs: [root.pem]"
    path = tmp_path / "handfast.yaml"
    path.write_text(
        "listeners:\n"
        f"- {{name: web, listen: '127.0.0.1:0', {common},\n"
        f"   client-auth: {{{auth}, crls: [root.crl], rules: {RULES}}}}}\n"
        f"- {{name: open, listen: 'unix:/tmp/open', {common}, client-auth: {{{auth}}}}}\n"
        f"- {{name: plain, listen: 'unix:/tmp/plain', {common}}}\n"
    )
    return path


def explain(file: Path, identity: Identity, *options: str) -> tuple[int, str, str]:
    """Give the exit code, standard output and standard error."""
    shown, _ = identity.write(file.parent, "shown")
    done = run_handfast("check", "-c", str(file), "--explain", str(shown), *options)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def explained(file: Path, identity: Identity, *options: str) -> list[dict[str, Any]]:
    found = json.loads(explain(file, identity, "--json", *options)[1])
    assert isinstance(found, list)
    return found


def test_it_tells_which_rule_lets_a_client_in_and_why_the_others_do_not(file: Path) -> None:
    code, output, errors = explain(file, ALICE)

    assert (code, errors) == (0, "")
    assert output == (
        "web (127.0.0.1:0): allowed: rule 3: allow dns=ali*\n"
        "  trust: CN=alice <- CN=intermediate <- CN=root\n"
        "  revocation: CN=alice is not checked: no CRL of CN=intermediate\n"
        "  revocation: CN=intermediate is not on the CRL of CN=root\n"
        "  rule 1: deny cn=*.bad: no: its cn is alice\n"
        "  rule 2: allow dns=bob: no: its dns is alice\n"
        "  rule 3: allow dns=ali*: applies\n"
        "open (unix:/tmp/open): allowed: there are no rules\n"
        "  trust: CN=alice <- CN=intermediate <- CN=root\n"
        "  revocation: CN=alice is not checked: no CRL of CN=intermediate\n"
        "  revocation: CN=intermediate is not checked: no CRL of CN=root\n"
    )


def test_it_fails_when_one_listener_refuses(file: Path) -> None:
    code, output, _ = explain(file, MALLORY)

    assert code == 1
    assert "web (127.0.0.1:0): denied (rule_denied, alert access_denied): rule 1: deny" in output
    assert "open (unix:/tmp/open): allowed" in output


def test_one_listener_can_be_asked_alone(file: Path) -> None:
    code, output, _ = explain(file, MALLORY, "--listener", "open")

    assert code == 0
    assert "web" not in output


@pytest.mark.parametrize("name", ["plain", "nobody"])
def test_a_listener_that_does_not_ask_has_nothing_to_explain(file: Path, name: str) -> None:
    code, _, errors = explain(file, ALICE, "--listener", name)

    assert code == 2
    assert f"no listener named {name} asks for client certificates" in errors


@pytest.mark.parametrize(
    ("identity", "reason", "alert"),
    [
        (issue("stranger", issue("other", ca=True), client=True), "untrusted", "unknown_ca"),
        (
            issue("late", ROOT, client=True, not_before=NOW - 9 * DAY, not_after=NOW - DAY),
            "certificate_expired",
            "certificate_expired",
        ),
        (
            issue("early", ROOT, client=True, not_before=NOW + DAY),
            "certificate_not_yet_valid",
            "bad_certificate",
        ),
        (SERVER, "unsuitable_purpose", "unsupported_certificate"),
    ],
    ids=["stranger", "late", "early", "server"],
)
def test_a_chain_that_openssl_refuses_is_refused_alike(
    file: Path, identity: Identity, reason: str, alert: str
) -> None:
    found = explained(file, identity, "--listener", "open")

    assert [(each["allowed"], each["reason"], each["alert"]) for each in found] == [
        (False, reason, alert)
    ]
    assert found[0]["rules"] == []


def handshake_succeeds(identity: Identity) -> bool:
    """Have OpenSSL do a handshake in memory with a server that trusts the root."""
    server = SSL.Context(SSL.TLS_SERVER_METHOD)
    server.use_certificate(SERVER.certificate)
    server.use_privatekey(SERVER.key)
    server.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    store = server.get_cert_store()
    assert store is not None
    store.add_cert(crypto.X509.from_cryptography(ROOT.certificate))
    client = SSL.Context(SSL.TLS_CLIENT_METHOD)
    client.use_certificate(identity.certificate)
    client.use_privatekey(identity.key)
    for each in identity.chain[1:]:
        client.add_extra_chain_cert(each)
    ends = SSL.Connection(client), SSL.Connection(server)
    ends[0].set_connect_state()
    ends[1].set_accept_state()
    try:
        for here, there in (ends, ends[::-1]) * 3:
            with suppress(SSL.WantReadError):
                here.do_handshake()
            with suppress(SSL.WantReadError):
                there.bio_write(here.bio_read(1 << 16))
    except SSL.Error:
        return False
    return True


def usage(*places: int) -> x509.KeyUsage:
    """Give a key usage by the places of RFC 5280, section 4.2.1.3."""
    return x509.KeyUsage(*(place in places for place in range(9)))


CLIENT_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
SERVER_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
ANY_USAGE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
AUTHORITY = x509.BasicConstraints(ca=True, path_length=None)


@pytest.mark.parametrize(
    ("leaf", "above"),
    [
        ((), None),
        ((CLIENT_AUTH, usage(0)), None),
        ((usage(4),), None),
        ((usage(2),), None),
        ((SERVER_AUTH,), None),
        ((ANY_USAGE,), None),
        ((AUTHORITY, usage(5)), None),
        ((), (AUTHORITY,)),
        ((), (AUTHORITY, SERVER_AUTH)),
        ((), (AUTHORITY, usage(0))),
        ((), ()),
    ],
)
def test_key_usage_is_judged_as_in_a_handshake(
    file: Path,
    leaf: tuple[x509.ExtensionType, ...],
    above: tuple[x509.ExtensionType, ...] | None,
) -> None:
    issuer = ROOT
    if above is not None:
        key = new_key()
        issuer = Identity(certificate(ROOT, cn=["above"], extensions=above, key=key), key, ROOT)
    key = new_key()
    identity = Identity(certificate(issuer, extensions=leaf, key=key), key, issuer)

    (found,) = explained(file, identity, "--listener", "open")

    assert found["allowed"] is handshake_succeeds(identity)


def test_a_revoked_certificate_is_told_with_its_list(file: Path) -> None:
    revoked = crl(ROOT, INTERMEDIATE.certificate)
    (file.parent / "root.crl").write_bytes(revoked.public_bytes(Encoding.DER))

    (found,) = explained(file, ALICE, "--listener", "web")

    assert found["reason"] == "certificate_revoked"
    assert "CN=intermediate was revoked on" in found["revocation"][1]


def test_an_expired_list_is_what_keeps_a_client_out(file: Path) -> None:
    late = crl(ROOT, last_update=NOW - 2 * DAY, next_update=NOW - DAY)
    (file.parent / "root.crl").write_bytes(late.public_bytes(Encoding.PEM))

    (found,) = explained(file, ALICE, "--listener", "web")
    checked = run_handfast("check", "-c", str(file))

    assert (found["allowed"], found["reason"]) == (False, "crl_expired")
    assert checked.returncode == 0
    assert "warning: the CRL of CN=root expired on" in checked.stdout


def test_what_a_certificate_says_does_not_reach_the_terminal_raw(file: Path) -> None:
    hostile = issue("\x1b[31m\n.bad", INTERMEDIATE, client=True)

    _, output, _ = explain(file, hostile)

    assert "\x1b" not in output
    assert r"CN=\x1b[31m\n.bad" in output


def test_a_file_without_a_certificate_is_named(file: Path) -> None:
    for shown, said in (("absent.pem", "cannot be read"), (str(file), "no PEM certificate")):
        done = run_handfast("check", "-c", str(file), "--explain", shown)

        assert done.returncode == 2
        assert f"{shown}: {said}" in done.stderr


@pytest.mark.parametrize("option", [["--json"], ["--listener", "web"]])
def test_options_that_explain_nothing_are_refused(file: Path, option: list[str]) -> None:
    done = run_handfast("check", "-c", str(file), *option)

    assert done.returncode == 2
    assert "--listener and --json go with --explain" in done.stderr
