"""Cipher suites and the key schedule from a traffic secret on.

Sources: RFC 8446, sections 5.3, 7.1 to 7.3 and B.4; RFC 5246, sections 5 and 6.3; RFC 5288;
RFC 5289; RFC 7905.
"""

from __future__ import annotations

import hmac
from typing import Final, Protocol, TypeAlias

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from handfast.errors import HandfastBug

TLS12: Final = 0x0303
TLS13: Final = 0x0304

VERSION_NAMES: Final = {
    0x0002: "SSLv2",
    0x0300: "SSLv3",
    0x0301: "TLSv1",
    0x0302: "TLSv1.1",
    TLS12: "TLSv1.2",
    TLS13: "TLSv1.3",
}

Buffer: TypeAlias = bytes | bytearray | memoryview

IV_LENGTH: Final = 12
"""Bytes of a per-record nonce: the same in all suites that handfast speaks."""


class Aead(Protocol):
    """One key of an AEAD, as the cryptography package gives it."""

    def encrypt_into(
        self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: Buffer
    ) -> int:
        """Write ciphertext and tag into `buf`, whose length has to be exactly right."""

    def decrypt_into(
        self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: Buffer
    ) -> int:
        """Write the plaintext into `buf`; raise InvalidTag when it is not authentic."""


class Suite(msgspec.Struct, frozen=True):
    """A cipher suite: what the record layer has to know of it.

    `fixed_iv` is the part of the nonce that is kept secret: 12 bytes, or the 4 bytes of the salt
    where TLS 1.2 sends the other 8 in every record (RFC 5288, section 3).
    """

    code: int
    name: str
    version: int
    aead: type[AESGCM | ChaCha20Poly1305]
    key_length: int
    hash_name: str
    hash_length: int
    fixed_iv: int = IV_LENGTH

    @property
    def is_gcm(self) -> bool:
        """Tell whether the AES-GCM usage limit counts (RFC 8446, section 5.5)."""
        return self.aead is AESGCM

    @property
    def openssl_name(self) -> str:
        """The name that OpenSSL has for it; in TLS 1.3 it is the registry's."""
        if self.version == TLS13:
            return self.name
        plain = self.name.removeprefix("TLS_").replace("WITH_AES_", "AES").replace("WITH_", "")
        return plain.replace("_", "-").replace("POLY1305-SHA256", "POLY1305")

    @property
    def secret_length(self) -> int:
        """Bytes of what `traffic_key` takes."""
        return self.hash_length if self.version == TLS13 else self.key_length + self.fixed_iv


def _suites() -> dict[int, Suite]:
    gcm128 = (AESGCM, 16, "sha256", 32)
    gcm256 = (AESGCM, 32, "sha384", 48)
    chacha = (ChaCha20Poly1305, 32, "sha256", 32)
    tls13 = [
        Suite(0x1301, "TLS_AES_128_GCM_SHA256", TLS13, *gcm128),
        Suite(0x1302, "TLS_AES_256_GCM_SHA384", TLS13, *gcm256),
        Suite(0x1303, "TLS_CHACHA20_POLY1305_SHA256", TLS13, *chacha),
    ]
    tls12 = [
        Suite(0xC02B, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", TLS12, *gcm128, 4),
        Suite(0xC02C, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", TLS12, *gcm256, 4),
        Suite(0xC02F, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", TLS12, *gcm128, 4),
        Suite(0xC030, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", TLS12, *gcm256, 4),
        Suite(0xCCA8, "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", TLS12, *chacha),
        Suite(0xCCA9, "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", TLS12, *chacha),
    ]
    return {suite.code: suite for suite in tls13 + tls12}


SUITES: Final = _suites()
"""Every cipher suite that handfast speaks, by its code in the IANA registry."""


def wipe(secret: bytearray) -> None:
    """Overwrite a secret where it lies. Of `bytes` that cannot be done, so secrets are bytearrays.

    They are made in their full length, since growing one would leave a copy behind.
    """
    secret[:] = bytes(len(secret))


def _label(label: bytes, length: int) -> bytes:
    """Encode an HkdfLabel without context (RFC 8446, section 7.1)."""
    full = b"tls13 " + label
    return length.to_bytes(2, "big") + bytes((len(full),)) + full + b"\0"


_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
}
_IV_INFO: Final = _label(b"iv", IV_LENGTH)
_KEY_INFO: Final = {length: _label(b"key", length) for length in (16, 32)}
_UPDATE_INFO: Final = {length: _label(b"traffic upd", length) for length in (32, 48)}


def _expand(suite: Suite, secret: Buffer, info: bytes, length: int) -> bytearray:
    """Derive into memory that can be wiped (HKDF-Expand: RFC 5869, section 2.3)."""
    derived = bytearray(length)
    HKDFExpand(_HASHES[suite.hash_name], length, info).derive_into(secret, derived)
    return derived


def traffic_key(suite: Suite, secret: Buffer) -> tuple[bytearray, bytearray]:
    """Give (key, iv) for one direction, the receiver's to wipe.

    For TLS 1.3 `secret` is the traffic secret (RFC 8446, section 7.3). TLS 1.2 has no such
    secret: there it is the write key followed by the fixed IV (RFC 5246, section 6.3).
    """
    if len(secret) != suite.secret_length:
        raise HandfastBug("secret of the wrong length")
    if suite.version == TLS12:
        view = memoryview(secret)  # a slice of the secret itself would be one more copy of it
        return bytearray(view[: suite.key_length]), bytearray(view[suite.key_length :])
    length = suite.key_length
    return (
        _expand(suite, secret, _KEY_INFO[length], length),
        _expand(suite, secret, _IV_INFO, IV_LENGTH),
    )


def next_secret(suite: Suite, secret: Buffer) -> bytearray:
    """Give the traffic secret after a KeyUpdate (RFC 8446, section 7.2)."""
    length = suite.hash_length
    return _expand(suite, secret, _UPDATE_INFO[length], length)


def tls12_secrets(
    suite: Suite, master_secret: bytes, client_random: bytes, server_random: bytes
) -> tuple[bytes, bytes]:
    """Give the (client write, server write) secrets of a TLS 1.2 session, each key then fixed IV.

    The key block of RFC 5246, section 6.3; AEAD suites have no MAC keys in it.
    """
    length = suite.key_length
    total = 2 * (length + suite.fixed_iv)
    seed = b"key expansion" + server_random + client_random
    block = b""
    a = seed
    while len(block) < total:
        a = hmac.digest(master_secret, a, suite.hash_name)
        block += hmac.digest(master_secret, a + seed, suite.hash_name)
    ivs = block[2 * length : total]
    client = block[:length] + ivs[: suite.fixed_iv]
    server = block[length : 2 * length] + ivs[suite.fixed_iv :]
    return client, server
