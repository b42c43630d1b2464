from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from conftest import Certificates
from handfast.config import (
    Certificate,
    ClientAuth,
    Config,
    Listener,
    Rule,
    Service,
    Target,
    TargetTls,
    TcpAddress,
    TlsPolicy,
)
from handfast.config.schema import Secret
from handfast.errors import ConfigError
from handfast.observe.events import CertLoaded
from handfast.process import credentials
from handfast.process.credentials import (
    Loaded,
    client_policy,
    engine,
    events,
    expiries,
    load_all,
    ordered,
)
from harness.pki import DAY, NOW, Identity, issue
from unit.policy.authority import crl, der

PLACE = TcpAddress(host="127.0.0.1", port=9)


def config(
    certificate: Certificate,
    *more: Certificate,
    auth: ClientAuth = ClientAuth(),  # noqa: B008 - it cannot change
    tls: TargetTls | None = None,
) -> Config:
    """A listener for each certificate, all with the same clients and target."""
    listeners = tuple(
        Listener(
            name=str(number),
            address=TcpAddress(host="127.0.0.1", port=0),
            certificates=(each,),
            client_auth=auth,
            service=Service(targets=(Target(address=PLACE, tls=tls),)),
        )
        for number, each in enumerate((certificate, *more))
    )
    return Config(nworkers=1, listeners=listeners)


def trusting(*files: Path | str, crls: tuple[Path, ...] = ()) -> ClientAuth:
    trusted = tuple(map(str, files))
    return ClientAuth(mode="require", trusted_certs=trusted, crls=tuple(map(str, crls)))


def load(parsed: Config) -> Loaded:
    (loaded,) = load_all(parsed, NOW).listeners
    return loaded


def files(
    identity: Identity, directory: Path, password: str | None = None, name: str = "mine"
) -> Certificate:
    chain, key = identity.write(directory, name, password)
    return Certificate(chain=str(chain), key=str(key))


@pytest.fixture
def mine(certificates: Certificates) -> Certificate:
    return Certificate(chain=str(certificates.chain), key=str(certificates.key))


def test_a_chain_and_its_key_are_loaded(certificates: Certificates, mine: Certificate) -> None:
    loaded = load(config(mine, auth=trusting(certificates.ca)))

    assert [each.chain for each in loaded.credentials] == [certificates.server.chain]
    assert loaded.trusted == (certificates.root.certificate,)
    told = [each for each in events(loaded, NOW) if isinstance(each, CertLoaded)]
    assert [(each.cert_role, each.error_msg) for each in told] == [
        ("leaf", ""), ("server_ca", ""), ("client_ca", ""),
    ]  # fmt: skip


def test_several_certificates_of_a_listener_are_loaded_in_their_order(
    certificates: Certificates, mine: Certificate, tmp_path: Path
) -> None:
    other = issue("other.example")
    rsa = Certificate(chain=str(certificates.rsa_chain), key=str(certificates.rsa_key))
    parsed = config(mine)
    listener = msgspec.structs.replace(
        parsed.listeners[0], certificates=(mine, rsa, files(other, tmp_path))
    )

    loaded = load(msgspec.structs.replace(parsed, listeners=(listener,)))

    assert [each.chain for each in loaded.credentials] == [
        certificates.server.chain,
        certificates.rsa_server.chain,
        other.chain,
    ]
    about = expiries("front", loaded)
    assert [each.subject for each in about] == ["CN=localhost", "CN=localhost", "CN=other.example"]
    assert {each.listener for each in about} == {"front"}
    assert about[2].not_after == other.certificate.not_valid_after_utc.timestamp()


def test_an_expired_certificate_still_serves_and_its_event_tells(tmp_path: Path) -> None:
    expired = issue("old.example", not_before=NOW - 9 * DAY, not_after=NOW - DAY)

    loaded = load(config(files(expired, tmp_path)))

    assert "expired on" in str(events(loaded, NOW)[0])


def test_ca_certificates_go_behind_the_leaf_whatever_their_order(
    certificates: Certificates,
) -> None:
    leaf, intermediate = certificates.server.chain
    root = certificates.root.certificate

    assert ordered((leaf,), (root, intermediate)) == (leaf, intermediate, root)
    assert ordered((leaf,), (intermediate, root)) == (leaf, intermediate, root)
    assert ordered((leaf,), ()) == (leaf,)


@pytest.mark.parametrize("source", ["inline", "file", "environment"])
def test_the_password_comes_from_where_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    certificate = files(issue("host"), tmp_path, "open sesame")
    (tmp_path / "password").write_text("open sesame\n")
    monkeypatch.setenv("KEY_PASSWORD", "open sesame")
    said = {
        "inline": {"key_password": Secret("open sesame")},
        "file": {"key_password_file": str(tmp_path / "password")},
        "environment": {"key_password_env": "KEY_PASSWORD"},
    }[source]

    loaded = load(config(msgspec.structs.replace(certificate, **said)))  # type: ignore[arg-type]  # one of three

    assert len(loaded.credentials) == 1


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    certificate = files(issue("host"), tmp_path, "open sesame")

    with pytest.raises(ConfigError, match="HANDFAST_NO_SUCH: this environment variable is not set"):
        load(config(msgspec.structs.replace(certificate, key_password_env="HANDFAST_NO_SUCH")))


def test_all_mistakes_of_all_listeners_are_told_at_once(certificates: Certificates) -> None:
    missing = Certificate(chain="/no/such/chain.pem", key=str(certificates.key))
    mismatch = Certificate(chain=str(certificates.chain), key=str(certificates.rsa_key))
    auth = trusting("/no/such/ca.pem", crls=(Path("/no/such/crl.pem"),))
    tls = TargetTls(trusted_certs=("/no/such/backend-ca.pem",))

    with pytest.raises(ConfigError) as caught:
        load_all(config(missing, mismatch, auth=auth, tls=tls), NOW)

    text = str(caught.value)
    assert "/no/such/chain.pem: cannot be read" in text
    assert text.count("/no/such/ca.pem: cannot be read") == 2
    assert text.count("/no/such/crl.pem: cannot be read") == 2
    assert text.count("/no/such/backend-ca.pem: cannot be read") == 1
    assert f"{certificates.rsa_key}: the key does not match" in text
    paths = {problem.path for problem in caught.value.problems}
    assert paths == {"listeners[0]", "listeners[1]", ""}


def test_revocation_lists_are_loaded_and_one_that_is_out_of_date_is_told(
    certificates: Certificates, mine: Certificate, tmp_path: Path
) -> None:
    current = crl(certificates.root, 7)
    old = crl(certificates.root, 8, next_update=NOW - DAY / 2)
    (tmp_path / "current.pem").write_bytes(current.public_bytes(Encoding.PEM))
    (tmp_path / "old.der").write_bytes(old.public_bytes(Encoding.DER))
    lists = (tmp_path / "current.pem", tmp_path / "old.der")

    loaded = load(config(mine, auth=trusting(certificates.ca, crls=lists)))

    assert [x509.load_der_x509_crl(each) for each in loaded.crls] == [current, old]
    assert len(loaded.warnings) == 1
    assert loaded.warnings[0] in str(events(loaded, NOW)[-1])


def test_who_may_connect_is_put_together_for_the_relays(
    certificates: Certificates, mine: Certificate
) -> None:
    rules = (Rule(allow=False, fields=(("cn", ("bad",)),)), Rule(allow=True))
    auth = msgspec.structs.replace(trusting(certificates.ca), rules=rules)
    parsed = config(mine, auth=auth)

    policy = client_policy(parsed.listeners[0], load(parsed))

    assert (policy.mode, policy.rules, policy.crls) == ("require", rules, ())
    assert policy.anchors == der(certificates.root.certificate)


def test_what_vouches_for_targets_is_loaded_by_file(
    certificates: Certificates, mine: Certificate
) -> None:
    tls = TargetTls(trusted_certs=(str(certificates.ca),))

    loaded = load_all(config(mine, mine, tls=tls), NOW)

    assert loaded.anchors == {str(certificates.ca): der(certificates.root.certificate)}


def test_targets_without_anchors_are_verified_by_what_the_system_trusts(
    certificates: Certificates, mine: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))

    loaded = load_all(config(mine, tls=TargetTls()), NOW)

    assert loaded.anchors == {"": der(certificates.root.certificate)}


def test_the_bundle_of_the_system_is_found_where_distributions_have_it(
    certificates: Certificates,
    mine: Certificate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr(credentials, "_BUNDLES", ("/no/such/bundle", str(certificates.ca)))

    loaded = load_all(config(mine, tls=TargetTls()), NOW)

    assert loaded.anchors == {"": der(certificates.root.certificate)}


def test_a_system_that_trusts_nobody_is_told_with_the_remedy(
    mine: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/bundle")

    with pytest.raises(ConfigError, match="install the package ca-certificates, or name"):
        load_all(config(mine, tls=TargetTls()), NOW)


def test_no_anchors_are_read_for_plain_targets(
    mine: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/bundle")

    assert load_all(config(mine), NOW).anchors == {}


def test_a_listener_that_passes_all_clients_through_needs_no_certificate(
    mine: Certificate,
) -> None:
    parsed = config(mine)
    listener = msgspec.structs.replace(parsed.listeners[0], certificates=())

    loaded = load(msgspec.structs.replace(parsed, listeners=(listener,)))

    assert loaded.credentials == ()
    assert engine(listener, loaded) is None


def test_suites_that_leave_no_version_are_refused_with_the_listener(mine: Certificate) -> None:
    parsed = config(mine)
    policy = TlsPolicy(versions=("1.2",), ciphersuites=("TLS_AES_128_GCM_SHA256",))
    listener = msgspec.structs.replace(parsed.listeners[0], tls=policy)

    with pytest.raises(ConfigError, match=r"listeners\[0\]: no TLS version is left"):
        load_all(msgspec.structs.replace(parsed, listeners=(listener,)), NOW)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(os.urandom(500)),
        lambda path: path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n"),
    ],
    ids=["empty", "random", "torn"],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    certificate = files(issue("host"), tmp_path)
    damage(tmp_path / "mine.pem")

    with pytest.raises(ConfigError, match=r"mine\.pem"):
        load(config(certificate))
