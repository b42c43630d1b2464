from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from OpenSSL import SSL

from conftest import Certificates
from handfast.errors import HandfastBug
from handfast.tls.keys import (
    SUITES,
    Suite,
    next_secret,
    tls12_secrets,
    traffic_key,
)
from unit.tls import rfc8448
from unit.tls.engines import SUITE_NAMES, Client, server_context, shake_hands
from unit.tls.sessions import AES128, AES128_12, every_suite, every_suite_12, every_suite_13, secret


def test_the_traffic_keys_are_those_of_rfc_8448() -> None:
    client = map(bytes, traffic_key(AES128, rfc8448.CLIENT_SECRET))
    server = map(bytes, traffic_key(AES128, rfc8448.SERVER_SECRET))

    assert tuple(client) == (rfc8448.CLIENT_KEY, rfc8448.CLIENT_IV)
    assert tuple(server) == (rfc8448.SERVER_KEY, rfc8448.SERVER_IV)


@every_suite_13
@pytest.mark.parametrize("fill", [1, 200])
def test_all_derivations_are_hkdf_expand_label(suite: Suite, fill: int) -> None:
    traffic = secret(suite, fill)

    key, iv = traffic_key(suite, traffic)

    assert key == expand_label(suite, traffic, b"key", suite.key_length)
    assert iv == expand_label(suite, traffic, b"iv", 12)
    assert next_secret(suite, traffic) == expand_label(
        suite, traffic, b"traffic upd", suite.hash_length
    )


def expand_label(suite: Suite, traffic: bytes, label: bytes, length: int) -> bytes:
    """RFC 8446, section 7.1, with an HKDF of another maker."""
    info = length.to_bytes(2, "big") + bytes((6 + len(label),)) + b"tls13 " + label + b"\0"
    algorithm = hashes.SHA384() if suite.hash_name == "sha384" else hashes.SHA256()
    return HKDFExpand(algorithm, length, info).derive(traffic)


@every_suite_12
def test_the_key_block_of_tls12_is_that_of_openssl(
    suite: Suite, certificates: Certificates
) -> None:
    """Both Finished records of a handshake between OpenSSLs open with our keys, number 0."""
    client = Client(suites=SUITE_NAMES[suite.code])
    context = server_context(certificates.rsa_server if "_RSA_" in suite.name else
                             certificates.server)  # fmt: skip

    from_client, from_server = shake_hands(client, SSL.Connection(context))
    keys = tls12_secrets(suite, *client.tls12_secrets())

    for direction, flight in zip(keys, (from_client, from_server), strict=True):
        finished = flight[flight.index(b"\x14\x03\x03\x00\x01\x01") + 6 :]
        opened = _open_first(suite, direction, finished)
        assert (opened[0], len(opened)) == (20, 16)  # Finished, 12 bytes of verify_data


def _open_first(suite: Suite, direction: bytes, record: bytes) -> bytes:
    key, iv = traffic_key(suite, direction)
    body = record[5 : 5 + int.from_bytes(record[3:5], "big")]
    if suite.fixed_iv == 4:
        iv, body = iv + body[:8], body[8:]
    aad = bytes(8) + record[:3] + (len(body) - 16).to_bytes(2, "big")
    return suite.aead(key).decrypt(iv, body, aad)


@every_suite
def test_a_secret_of_the_wrong_length_is_our_bug(suite: Suite) -> None:
    for wrong in (b"", secret(suite, 1)[:-1], secret(suite, 1) + b"x"):
        with pytest.raises(HandfastBug) as caught:
            traffic_key(suite, wrong)
        assert wrong.hex() not in str(caught.value) or not wrong


def test_only_aes_gcm_has_a_record_limit() -> None:
    assert {suite.name for suite in SUITES.values() if not suite.is_gcm} == {
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    }


def test_the_salt_is_in_the_secret_of_tls12() -> None:
    key, salt = map(bytes, traffic_key(AES128_12, bytes(range(20))))

    assert (key, salt) == (bytes(range(16)), bytes(range(16, 20)))
