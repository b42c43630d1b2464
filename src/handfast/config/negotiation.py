"""What a listener negotiates: TLS versions, cipher suites, key exchange."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args

from handfast.config.document import Value
from handfast.config.scalars import boolean, choice
from handfast.config.schema import TlsPolicy, TlsVersion
from handfast.config.shape import Shape, keywords, list_of
from handfast.errors import Problem

SUITES: Final[dict[str, TlsVersion]] = {
    "TLS_AES_128_GCM_SHA256": "1.3",
    "TLS_AES_256_GCM_SHA384": "1.3",
    "TLS_CHACHA20_POLY1305_SHA256": "1.3",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "1.2",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "1.2",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "1.2",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "1.2",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "1.2",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "1.2",
}
"""Every suite that may be named, by its name in the IANA registry, and the version it is of."""


def _versions(found: Mapping[str, Any]) -> tuple[TlsVersion, ...]:
    """Give the versions in their own order; those that may be post-quantum, if they must."""
    if "versions" not in found:
        return ("1.3",) if found.get("require-post-quantum") else TlsPolicy().versions
    return tuple(version for version in get_args(TlsVersion) if version in found["versions"])


def _post_quantum_is_1_3(value: Value, found: Mapping[str, Any]) -> Iterable[Problem]:
    if found.get("require-post-quantum") and "1.2" in found.get("versions", ()):
        message = "TLS 1.2 has no post-quantum key exchange; remove 1.2 or `require-post-quantum`"
        yield value.entries["versions"].problem(message)


def _suites_fit_versions(value: Value, found: Mapping[str, Any]) -> Iterable[Problem]:
    """Demand a suite for each version and a version for each suite."""
    if "ciphersuites" not in found:
        return
    where = value.entries["ciphersuites"]
    versions = _versions(found)
    for version in versions:
        if version not in {SUITES[name] for name in found["ciphersuites"]}:
            message = f"none is of TLS {version}; add one, or leave {version} out of `versions`"
            yield where.problem(message)
    for name, item in zip(found["ciphersuites"], where.items, strict=True):
        if SUITES[name] not in versions:
            yield item.problem(f"{name} is of TLS {SUITES[name]}, which is not among the versions")


TLS: Final = Shape(
    fields={
        "versions": list_of(choice(*get_args(TlsVersion))),
        "ciphersuites": list_of(choice(*SUITES)),
        "require-post-quantum": boolean,
    },
    checks=(_post_quantum_is_1_3, _suites_fit_versions),
)


def tls_policy(value: Value) -> TlsPolicy:
    """Take the key `tls` of a listener."""
    found = TLS.read(value)
    return TlsPolicy(**keywords({**found, "versions": _versions(found)}))
