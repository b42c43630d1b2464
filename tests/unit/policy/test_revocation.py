"""Revocation lists: which are taken, and whom they keep out."""

from __future__ import annotations

import datetime
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from handfast.errors import ConfigError
from handfast.policy.revocation import Revocation, check_crls, parse_crls
from harness.pki import DAY, NOW, Identity, issue
from unit.policy.authority import certificate, crl

ROOT = issue("root", ca=True)
OTHER = issue("other", ca=True)
TRUSTED = (ROOT.certificate, OTHER.certificate)
CLIENT = certificate(ROOT)


def der(*lists: x509.CertificateRevocationList) -> tuple[bytes, ...]:
    return tuple(each.public_bytes(Encoding.DER) for each in lists)


def found(subject: x509.Certificate, *lists: x509.CertificateRevocationList) -> str:
    finding = Revocation(der(*lists)).find(subject, NOW)
    return finding.reason if finding else ""


def scope(**changes: object) -> x509.IssuingDistributionPoint:
    fields = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**{**fields, **changes})  # type: ignore[arg-type]


def test_lists_are_read_from_pem_and_der() -> None:
    lists = crl(ROOT), crl(OTHER, CLIENT)
    pem = b"some text\n" + b"\n".join(each.public_bytes(Encoding.PEM) for each in lists)

    assert parse_crls(pem, "all.pem") == der(*lists)
    assert parse_crls(der(lists[0])[0], "one.der") == der(lists[0])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ROOT.pem(),
        crl(ROOT).public_bytes(Encoding.DER)[:-1],
        crl(ROOT).public_bytes(Encoding.DER) + b"\0",
        b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        b"-----BEGIN X509 CRL-----\n" + crl(ROOT).public_bytes(Encoding.PEM),
    ],
)
def test_a_file_without_a_list_is_named(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"list\.pem: no revocation list.*BEGIN X509 CRL"):
        parse_crls(data, "list.pem")


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_lists_or_a_mistake(data: bytes, wrapped: bool) -> None:
    text = b"-----BEGIN X509 CRL-----\n%b\n-----END X509 CRL-----\n" % data

    with pytest.raises(ConfigError):
        parse_crls(text if wrapped else data, "list.pem")


def test_a_list_of_a_trusted_certificate_is_taken() -> None:
    assert check_crls(der(crl(ROOT), crl(OTHER)), TRUSTED, NOW) == ()


def test_a_list_of_an_unknown_issuer_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        ConfigError, match=r"CRL of CN=other .*add the issuing certificate to trust"
    ):
        check_crls(der(crl(OTHER)), (ROOT.certificate,), NOW)


def test_a_list_that_a_namesake_signed_is_refused() -> None:
    namesake = issue("root", ca=True)

    with pytest.raises(ConfigError, match="CRL of CN=root is signed by another key"):
        check_crls(der(crl(ROOT, signer=namesake)), TRUSTED, NOW)
    assert not check_crls(der(crl(namesake)), (*TRUSTED, namesake.certificate), NOW)


@pytest.mark.parametrize(
    ("extension", "critical", "said"),
    [
        (x509.DeltaCRLIndicator(1), True, "is a delta CRL; give the complete one"),
        (scope(indirect_crl=True), True, "is an indirect CRL"),
        (scope(only_contains_attribute_certs=True), True, "covers only"),
        (
            scope(only_some_reasons=frozenset([x509.ReasonFlags.key_compromise])),
            True,
            "covers only some reasons",
        ),
        (
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
            True,
            "unknown critical extension 1.2.3.4",
        ),
    ],
)
def test_a_list_that_means_more_than_we_know_is_refused(
    extension: x509.ExtensionType, critical: bool, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_crls(der(crl(ROOT, extensions=[(extension, critical)])), TRUSTED, NOW)


def test_an_unknown_extension_that_is_not_critical_is_passed_over() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")

    assert check_crls(der(crl(ROOT, extensions=[(unknown, False)])), TRUSTED, NOW) == ()


def test_every_wrong_list_is_reported_at_once() -> None:
    stranger = issue("stranger", ca=True)

    with pytest.raises(ConfigError) as caught:
        check_crls(der(crl(stranger), crl(ROOT, signer=OTHER)), TRUSTED, NOW)

    assert len(caught.value.problems) == 2


def test_an_expired_list_is_a_warning_and_keeps_its_issuers_certificates_out() -> None:
    late = crl(ROOT, last_update=NOW - 2 * DAY, next_update=NOW - DAY)

    (warning,) = check_crls(der(late), TRUSTED, NOW)

    assert "the CRL of CN=root expired on" in warning
    assert found(CLIENT, late) == "crl_expired"
    assert found(certificate(OTHER), late) == ""


def test_what_an_expired_list_revokes_stays_revoked() -> None:
    late = crl(ROOT, CLIENT, last_update=NOW - 2 * DAY, next_update=NOW - DAY)

    assert found(CLIENT, late) == "certificate_revoked"


def test_a_revoked_certificate_is_found_with_its_date_and_reason() -> None:
    finding = Revocation(der(crl(ROOT, certificate(ROOT), CLIENT))).find(CLIENT, NOW)

    assert finding is not None
    assert finding.reason == "certificate_revoked"
    assert "CN=client was revoked on 20" in finding.text
    assert finding.text.endswith(": key compromise")


def test_a_certificate_that_is_not_on_the_list_is_fine() -> None:
    assert found(CLIENT, crl(ROOT, certificate(ROOT))) == ""


def test_a_serial_number_counts_for_its_issuer_alone() -> None:
    assert found(CLIENT, crl(OTHER, CLIENT)) == ""


def test_serial_numbers_that_end_alike_are_told_apart() -> None:
    twin = CLIENT.serial_number ^ 1 << 70

    assert found(CLIENT, crl(ROOT, twin)) == ""
    assert found(CLIENT, crl(ROOT, twin, CLIENT)) == "certificate_revoked"


def test_the_latest_list_of_an_issuer_counts_in_any_order() -> None:
    old = crl(ROOT, last_update=NOW - 3 * DAY, next_update=NOW - 2 * DAY)
    new = crl(ROOT, CLIENT)

    for lists in ((old, new), (new, old)):
        assert found(CLIENT, *lists) == "certificate_revoked"
        assert found(certificate(ROOT), *lists) == ""


def test_lists_of_different_scopes_count_together() -> None:
    users = crl(ROOT, CLIENT, extensions=[(scope(only_contains_user_certs=True), True)])
    authorities = crl(
        ROOT, last_update=NOW, extensions=[(scope(only_contains_ca_certs=True), True)]
    )

    assert check_crls(der(users, authorities), TRUSTED, NOW) == ()
    assert found(CLIENT, users, authorities) == "certificate_revoked"


def test_a_list_is_found_by_another_spelling_of_its_issuer() -> None:
    spelled = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ROOT ")])
    other = Identity(
        x509.CertificateBuilder(
            spelled, spelled, ROOT.key.public_key(), 1, NOW - DAY, NOW + DAY
        ).sign(ROOT.key, hashes.SHA256()),
        ROOT.key,
    )

    assert found(CLIENT, crl(other, CLIENT)) == "certificate_revoked"


def test_a_large_list_is_quick_to_load_and_to_ask() -> None:
    serials = [x509.random_serial_number() for _ in range(20_000)]
    data = der(crl(ROOT, *serials, CLIENT))

    start = time.process_time()
    revocation = Revocation(data)
    loaded = time.process_time()
    for _ in range(1000):
        revocation.find(ROOT.certificate, NOW)
    asked = time.process_time()

    assert loaded - start < 1
    assert asked - loaded < 0.5
    assert revocation.find(CLIENT, NOW) is not None


def test_without_lists_nothing_is_checked() -> None:
    revocation = Revocation(())

    assert not revocation
    assert not revocation.covers(CLIENT)
    assert revocation.find(CLIENT, NOW + datetime.timedelta(days=9999)) is None
