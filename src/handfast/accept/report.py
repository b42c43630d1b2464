"""What a handshake tells the log: one `auth` event, and one more about a client certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from handfast.errors import PeerError
from handfast.observe.events import Auth
from handfast.observe.logfmt import text
from handfast.tls.alerts import alert_name
from handfast.tls.certificates import certificate_fields
from handfast.tls.handshake import HandshakeError
from handfast.tls.hello import first_message, parse_client_hello
from handfast.tls.keys import VERSION_NAMES

if TYPE_CHECKING:
    from handfast.accept.attempt import Attempt
    from handfast.observe.counters import Counters
    from handfast.observe.log import Log
    from handfast.tls.session import Session


def granted(log: Log, counters: Counters, attempt: Attempt, session: Session, now: float) -> None:
    """Tell of a handshake that gave a session, and of the certificate that the client showed."""
    door, peer = attempt.door, session.peer
    suite = session.suite
    version = VERSION_NAMES[suite.version]
    seconds = now - attempt.started
    kind = (version, suite.name, peer.group)
    counters.grant(kind, resumed=peer.resumed, seconds=seconds)
    log.emit(
        Auth(
            subevent="handshake",
            outcome="granted",
            client_ip=attempt.address,
            client_port=attempt.port or None,
            listen_ip=door.listen_ip,
            listen_port=door.listen_port or None,
            sni=peer.sni,
            alpn=peer.alpn,
            tls_version=version,
            ciphersuite=suite.name,
            group=peer.group,
            resumed=peer.resumed,
            duration_ms=int(seconds * 1_000_000) / 1000,
        )
    )
    if peer.certificates:
        log.emit(
            Auth(
                subevent="mtls",
                outcome="granted",
                **_ends(attempt),
                **certificate_fields(peer.certificates),
            )
        )


def failed(
    log: Log, counters: Counters, attempt: Attempt, error: HandshakeError, hello: bytes, now: float
) -> None:
    """Tell of a handshake that gave none: once, with all that is known of it."""
    counters.fail(error.outcome.value, error.token)
    log.emit(
        Auth(
            subevent="mtls" if error.about_certificate else "handshake",
            outcome=error.outcome.value,
            reason=error.token,
            alert=_alert(error),
            error_msg=error.reason,
            duration_ms=round((now - attempt.started) * 1000, 3),
            **_ends(attempt),
            **_offer(hello),
            **certificate_fields(error.certificates),
        )
    )


def _alert(error: HandshakeError) -> str:
    if error.alert is None:
        return ""
    return f"{alert_name(error.alert)} {'received' if error.received else 'sent'}"


def _ends(attempt: Attempt) -> dict[str, Any]:
    return {
        "client_ip": attempt.address,
        "client_port": attempt.port or None,
        "listen_ip": attempt.door.listen_ip,
        "listen_port": attempt.door.listen_port or None,
    }


def _offer(records: bytes) -> dict[str, Any]:
    """Read SNI and versions from what the client sent first, if it is a hello at all."""
    try:
        hello = parse_client_hello(first_message(records))
    except PeerError:
        return {}
    # Numbers like 0x?a?a are there to keep servers tolerant (GREASE, RFC 8701).
    real = [version for version in hello.versions if version & 0x0F0F != 0x0A0A]
    versions = ",".join(VERSION_NAMES.get(each, f"0x{each:04x}") for each in real[:16])
    return {"sni": text(hello.sni), "offered_versions": versions}
