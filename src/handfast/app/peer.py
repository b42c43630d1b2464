"""Who the client is."""

from __future__ import annotations

import msgspec

from handfast.handover.application import Facts, Offer
from handfast.tls.session import Session


class Peer(msgspec.Struct, frozen=True):
    """The client of a connection. What is not known is empty, a port 0.

    `address` and `port` are the client's own, behind a PROXY header too; `local` is what it
    connected to. `certificates` are its chain, DER, leaf first, and verified by handfast; empty
    without. `tls_version` is as in "TLSv1.3", `ciphersuite` a name of the IANA registry.
    """

    address: str
    port: int
    local: tuple[str, int]
    listener: str
    sni: str
    alpn: str
    tls_version: str
    ciphersuite: str
    group: str
    resumed: bool
    certificates: tuple[bytes, ...]
    version_code: int
    ciphersuite_code: int

    @property
    def certificate(self) -> bytes | None:
        """The client's own certificate, DER; None without."""
        return self.certificates[0] if self.certificates else None


def peer_of(offer: Offer) -> Peer:
    """Take out of an offer what it says of the client."""
    facts: Facts = offer.facts
    session: Session = offer.session
    return Peer(
        address=facts.client_ip,
        port=facts.client_port,
        local=(facts.listen_ip, facts.listen_port),
        listener=facts.listener,
        sni=facts.sni,
        alpn=facts.alpn,
        tls_version=facts.tls_version,
        ciphersuite=facts.ciphersuite,
        group=facts.group,
        resumed=facts.resumed,
        certificates=facts.certificates,
        version_code=session.version,
        ciphersuite_code=session.suite_code,
    )
