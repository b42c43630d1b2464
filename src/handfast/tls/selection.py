"""Which certificates a server shows to a client that asks for a name.

A certificate is for the names in its subjectAltName (RFC 9525, section 2.2). The exact name wins
over a wildcard, which stands for one label (section 6.3), and that over the default: the first
certificate. Certificates for the same name but with keys of different kinds stand side by side,
and the handshake takes the one that the client can verify.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from handfast.tls.certificates import Credential


def names_of(certificate: x509.Certificate) -> frozenset[str]:
    """Give the DNS names of a certificate, in lower case; empty when it has none."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()
    return frozenset(name.lower() for name in found.value.get_values_for_type(x509.DNSName))


class Selection:
    """The choice among a listener's credentials, by their places in the list."""

    def __init__(self, credentials: Sequence[Credential]) -> None:
        kinds = [isinstance(each.key, rsa.RSAPrivateKey) for each in credentials]
        places: dict[str, list[int]] = {}
        for place, each in enumerate(credentials):
            for name in names_of(each.chain[0]):
                places.setdefault(name, []).append(place)
        self._by_name = {name: _one_of_a_kind(found, kinds) for name, found in places.items()}
        first = names_of(credentials[0].chain[0])
        beside = [p for p, each in enumerate(credentials) if names_of(each.chain[0]) == first]
        self.default = _one_of_a_kind([0, *beside], kinds)

    def choose(self, name: str) -> tuple[int, ...]:
        """Give the places to show for a name in lower case; empty is a client that asks for none.

        There is one place for each kind of key at most, and at least one in all.
        """
        found = self._by_name.get(name)
        if found is None:
            found = self._by_name.get("*." + name.partition(".")[2], self.default)
        return found

    def choices(self) -> set[tuple[int, ...]]:
        """Give every answer that `choose` can give."""
        return {self.default, *self._by_name.values()}


def _one_of_a_kind(places: list[int], kinds: list[bool]) -> tuple[int, ...]:
    first: dict[bool, int] = {}
    for place in places:
        first.setdefault(kinds[place], place)
    return tuple(sorted(first.values()))
