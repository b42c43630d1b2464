from __future__ import annotations

import ipaddress
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from handfast.errors import ConfigError
from handfast.tls.names import mismatch, server_name
from harness.pki import DAY, NOW, issue, new_key

KEY = new_key()


@cache
def certificate(*names: str, common_name: str = "") -> bytes:
    """A certificate for these names, of which those that are addresses are there as such."""
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(x509.Name([]))
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
    )
    if names:
        found = [_general(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(found), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("www.example.com", "www.example.com"),
        ("WWW.Example.com", "www.example.COM"),
        ("www.example.com", "www.example.com."),
        ("*.example.com", "www.example.com"),
        ("*.EXAMPLE.com", "a.example.com"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "bücher.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "0:0::1"),
        ("fe80::1", "fe80::1%eth0"),
    ],
)
def test_the_name_is_in_the_certificate(pattern: str, name: str) -> None:
    assert mismatch(certificate("other.example", pattern), server_name(name)) == ""


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("www.example.com", "example.com"),
        ("example.com", "www.example.com"),
        ("*.example.com", "example.com"),
        ("*.example.com", "a.b.example.com"),
        ("*.example.com", "*.example.com"),
        ("*.example.com", ".example.com"),
        ("w*.example.com", "www.example.com"),
        ("www.*.com", "www.example.com"),
        ("*.*.com", "a.b.com"),
        ("*.com", "example.com"),
        ("*", "localhost"),
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
    ],
)
def test_the_name_is_not_in_the_certificate(pattern: str, name: str) -> None:
    try:
        wanted = server_name(name)
    except ConfigError:
        return  # it is not even asked for
    assert f"not for {wanted} but for {pattern}" in mismatch(certificate(pattern), wanted)


def test_an_address_written_as_a_dns_name_is_no_address() -> None:
    names = x509.SubjectAlternativeName([x509.DNSName("127.0.0.1")])
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    builder = builder.public_key(KEY.public_key()).serial_number(1).not_valid_before(NOW)
    builder = builder.not_valid_after(NOW + DAY).add_extension(names, critical=False)
    der = builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)

    assert mismatch(der, server_name("127.0.0.1"))


def test_the_common_name_does_not_count() -> None:
    leaf = certificate(common_name="www.example.com")

    assert "has no subjectAltName" in mismatch(leaf, server_name("www.example.com"))


def test_an_error_quotes_a_few_names_and_not_all() -> None:
    names = tuple(f"n{number}.example.com" for number in range(50))

    text = mismatch(certificate(*names), server_name("www.example.com"))

    assert text.endswith("n0.example.com, n1.example.com, n2.example.com, n3.example.com, "
                         "n4.example.com, ...")  # fmt: skip


def test_an_address_is_not_sent_as_a_name() -> None:
    assert server_name("::1").sni == ""
    assert server_name("Bücher.example.").sni == "xn--bcher-kva.example"


@pytest.mark.parametrize("text", ["", ".", "a..b", "x" * 64 + ".example"])
def test_what_is_no_name_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ConfigError, match="set server-name"):
        server_name(text)


def test_what_cannot_be_read_is_for_nobody() -> None:
    good = issue("www.example.com").certificate.public_bytes(Encoding.DER)
    assert mismatch(good, server_name("www.example.com")) == ""

    for bad in (b"", b"garbage", good[:-1], good.replace(b"www.", b"\xff\xff\xff\xff")):
        assert "cannot be read" in mismatch(bad, server_name("www.example.com"))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # cryptography's, to its users
@settings(max_examples=300)
@given(data=st.data())
def test_no_change_of_a_certificate_raises(data: st.DataObject) -> None:
    leaf = bytearray(certificate("www.example.com", "127.0.0.1"))
    for _ in range(data.draw(st.integers(1, 4))):
        leaf[data.draw(st.integers(0, len(leaf) - 1))] = data.draw(st.integers(0, 255))

    for name in ("www.example.com", "127.0.0.1"):
        assert isinstance(mismatch(bytes(leaf), server_name(name)), str)


@given(text=st.text())
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = server_name(text)
    except ConfigError:
        return
    assert name.sni.isascii()
    assert str(name)
