from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding

from handfast.tls.certificates import certificate_fields

if TYPE_CHECKING:
    from conftest import Certificates

VERSION_3 = b"\xa0\x03\x02\x01\x02"


def test_a_certificate_that_only_openssl_can_read_costs_no_more_than_its_fields(
    certificates: Certificates,
) -> None:
    good = certificates.server.certificate.public_bytes(Encoding.DER)
    unknown_version = good.replace(VERSION_3, VERSION_3[:-1] + b"\x04", 1)

    assert certificate_fields((good,))["client_cert_subject"]
    assert certificate_fields((unknown_version,)) == {}
    assert certificate_fields((b"garbage",)) == {}
