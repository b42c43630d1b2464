from __future__ import annotations

import datetime

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from conftest import Certificates
from handfast.errors import ConfigError
from handfast.tls.certificates import (
    Credential,
    algorithms,
    check_chain,
    check_key,
    facts,
    parse_chain,
    parse_key,
    validity,
)
from harness.pki import DAY, NOW, issue


def test_a_chain_is_read_in_the_order_of_its_file(certificates: Certificates) -> None:
    server = certificates.server

    assert parse_chain(server.chain_pem(), "chain.pem") == server.chain


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no certificate here",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n",
    ],
)
def test_a_file_without_certificates_is_named(pem: bytes) -> None:
    with pytest.raises(ConfigError, match=r"chain\.pem: no PEM certificate"):
        parse_chain(pem, "chain.pem")


@given(pem=st.binary(max_size=200), wrapped=st.booleans())
def test_any_bytes_are_certificates_or_a_mistake(pem: bytes, wrapped: bool) -> None:
    text = b"-----BEGIN CERTIFICATE-----\n%b\n-----END CERTIFICATE-----\n" % pem

    with pytest.raises(ConfigError):
        parse_chain(text if wrapped else pem, "chain.pem")


def test_a_chain_in_order_is_right(certificates: Certificates) -> None:
    server = certificates.server

    check_chain(server.chain, "chain.pem")
    check_chain((*server.chain, certificates.root.certificate), "chain.pem")
    check_chain(certificates.root.chain, "root.pem")


def test_a_chain_out_of_order_names_the_place(certificates: Certificates) -> None:
    leaf, intermediate = certificates.server.chain

    with pytest.raises(ConfigError, match=r"certificate 1 \(CN=test intermediate\).*leaf first"):
        check_chain((intermediate, leaf), "chain.pem")
    with pytest.raises(ConfigError, match=r"certificate 2 .* certificate 3 \(CN=localhost\)"):
        check_chain((leaf, intermediate, leaf), "chain.pem")


def test_a_ca_of_the_same_name_is_not_the_issuer(certificates: Certificates) -> None:
    impostor = issue("test intermediate", certificates.root, ca=True)

    with pytest.raises(ConfigError, match="was not issued by"):
        check_chain((certificates.server.certificate, impostor.certificate), "chain.pem")


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
@pytest.mark.parametrize("password", [None, "open sesame"])
def test_a_key_is_read_with_its_password(kind: str, password: str | None) -> None:
    identity = issue("host", kind=kind)
    pem = identity.key_pem(password)

    key = parse_key(pem, password.encode() if password else None, "key.pem")

    check_key(identity.certificate, key, "cert.pem", "key.pem")


def test_a_password_that_is_not_needed_is_no_mistake(certificates: Certificates) -> None:
    key = parse_key(certificates.server.key_pem(), b"superfluous", "key.pem")

    assert key.public_key() == certificates.server.key.public_key()


def test_a_missing_password_is_asked_for(certificates: Certificates) -> None:
    with pytest.raises(ConfigError, match=r"key\.pem: the key is encrypted; give its password"):
        parse_key(certificates.server.key_pem("secret"), None, "key.pem")


def test_a_wrong_password_is_not_shown(certificates: Certificates) -> None:
    with pytest.raises(ConfigError, match="password is wrong") as caught:
        parse_key(certificates.server.key_pem("right one"), b"wrong one", "key.pem")

    assert "wrong one" not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("pem", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAA\n"])
def test_a_file_without_a_key_is_named(pem: bytes) -> None:
    with pytest.raises(ConfigError, match=r"key\.pem: the private key cannot be read"):
        parse_key(pem, None, "key.pem")


def test_a_key_of_another_kind_is_refused() -> None:
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )

    with pytest.raises(ConfigError, match="neither RSA nor ECDSA"):
        parse_key(pem, None, "key.pem")


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_a_key_of_another_certificate_names_both_files(
    certificates: Certificates, kind: str
) -> None:
    other = issue("other", kind=kind)

    with pytest.raises(ConfigError, match=r"^key\.pem: .* of cert\.pem") as caught:
        check_key(certificates.server.certificate, other.key, "cert.pem", "key.pem")

    assert "PRIVATE" not in str(caught.value)


def test_validity_tells_what_is_wrong_at_a_time() -> None:
    certificate = issue("host", not_before=NOW, not_after=NOW + DAY).certificate
    second = datetime.timedelta(seconds=2)

    assert validity(certificate, NOW + second) == ""
    assert validity(certificate, NOW - second).startswith("not valid before 20")
    assert validity(certificate, NOW + DAY + second).startswith("expired on 20")


def test_facts_are_those_of_the_certificate(certificates: Certificates) -> None:
    certificate = certificates.server.certificate

    about = facts(certificate)

    assert about.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    assert (about.subject, about.issuer) == ("CN=localhost", "CN=test intermediate")
    assert about.not_before < about.not_after


def test_a_credential_never_shows_its_key(certificates: Certificates) -> None:
    server = certificates.server

    assert repr(Credential(server.chain, server.key)) == "Credential(CN=localhost)"


@pytest.mark.parametrize(
    ("issuer", "kind", "named"),
    [
        ("ecdsa", "ecdsa", ("EC256", "ecdsa-with-SHA256")),
        ("ecdsa", "rsa", ("RSA2048", "ecdsa-with-SHA256")),
        ("rsa", "ecdsa", ("EC256", "RSA-SHA256")),
    ],
)
def test_algorithms_have_the_names_that_openssl_gives_them(
    issuer: str, kind: str, named: tuple[str, str]
) -> None:
    identity = issue("localhost", issue("root", ca=True, kind=issuer), kind=kind)

    assert algorithms(identity.certificate) == named
