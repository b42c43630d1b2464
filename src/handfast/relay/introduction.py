"""How a target is told who its client is: the PROXY header that goes before everything else."""

from __future__ import annotations

import socket

from handfast.config import SendProxy
from handfast.handover.message import Passthrough
from handfast.tls.session import Peer, Session
from handfast.transport.proxy_protocol.build import build_v1, build_v2, tls_facts
from handfast.transport.proxy_protocol.wire import Endpoint


def header(version: SendProxy, session: Session | Passthrough, client: socket.socket) -> bytes:
    """Build the header for a client; nothing when none is wanted."""
    if version == "none":
        return b""
    peer = session.peer
    source = (peer.address, peer.port) if peer.address else None
    reached = destination(peer, client)
    if version == "v1":
        return build_v1(source, reached)
    facts = tls_facts(session) if isinstance(session, Session) else None
    return build_v2(source, reached, alpn=peer.alpn, authority=peer.sni, tls=facts)


def destination(peer: Peer, client: socket.socket) -> Endpoint | None:
    """Give the address that the client connected to; a Unix socket's is none."""
    if peer.dialled is not None:
        return peer.dialled
    if client.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        host, port, *_ = client.getsockname()
    except OSError:
        return None  # it is gone already
    return host, port
