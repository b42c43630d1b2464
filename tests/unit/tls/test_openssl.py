from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from conftest import Certificates
from handfast.errors import ConfigError, HandfastBug
from handfast.tls.alerts import Alert, alert_name, plaintext_alert
from handfast.tls.certificates import Credential
from handfast.tls.handshake import MAX_HANDSHAKE, HandshakeError, Outcome
from handfast.tls.hello import first_message, parse_client_hello
from handfast.tls.keys import TLS12, TLS13, Suite
from handfast.tls.openssl import OpenSSLEngine
from handfast.tls.openssl_handshake import OpenSSLHandshake
from handfast.tls.session import Consumed, Role, Session
from harness.pki import DAY, NOW, Identity, issue
from unit.tls.engines import (
    SUITE_NAMES,
    Client,
    connect,
    credential,
    established,
    refusal,
    server_context,
)
from unit.tls.sessions import End, every_suite, pieces

V12, V13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
versions = pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])
EMPTY_TOKENS = {"", "unknown_reason"}


@pytest.fixture(scope="session")
def engine(certificates: Certificates) -> OpenSSLEngine:
    return OpenSSLEngine([credential(certificates.server)])


@pytest.fixture(scope="session")
def rsa_engine(certificates: Certificates) -> OpenSSLEngine:
    return OpenSSLEngine([credential(certificates.rsa_server)])


@dataclass(frozen=True)
class ClientIdentities:
    """What a client may show to a server that trusts `root`."""

    root: Identity
    good: Identity
    below: Identity
    expired: Identity
    early: Identity
    stranger: Identity
    pinned: Identity
    no_client: Identity
    intermediate: Identity


@pytest.fixture(scope="session")
def people(certificates: Certificates) -> ClientIdentities:
    root = certificates.root
    intermediate = issue("client intermediate", root, ca=True)
    return ClientIdentities(
        root=root,
        good=certificates.client(),
        below=certificates.client("below", intermediate),
        expired=issue("expired", root, client=True, not_before=NOW - 9 * DAY, not_after=NOW - DAY),
        early=issue("early", root, client=True, not_before=NOW + DAY, not_after=NOW + 9 * DAY),
        stranger=issue("stranger", issue("another root", ca=True), client=True),
        pinned=issue("pinned", client=True),
        no_client=certificates.server,
        intermediate=intermediate,
    )


@pytest.fixture(scope="session")
def strict(certificates: Certificates) -> OpenSSLEngine:
    """A server that requires certificates under the root."""
    return OpenSSLEngine(
        [credential(certificates.server)], trusted=(certificates.root.certificate,), require=True
    )


def der(identity: Identity) -> bytes:
    return identity.certificate.public_bytes(Encoding.DER)


def echoes(session: Session, client: Client) -> None:
    """Assert that data passes both ways, several records each."""
    end = End(session)
    for _ in range(3):
        assert end.open(client.seal(b"up")) == b"up"
        client.feed(end.seal(b"down"))
    assert (client.received, client.error) == (b"down" * 3, "")


# Handshakes that work


@every_suite
def test_a_session_of_every_suite_goes_on_where_openssl_stopped(
    engine: OpenSSLEngine, rsa_engine: OpenSSLEngine, suite: Suite
) -> None:
    client = Client(suites=SUITE_NAMES[suite.code])

    session = established(rsa_engine if "_RSA_" in suite.name else engine, client)

    assert session.suite is suite
    assert session.role is Role.SERVER
    echoes(session, client)


@every_suite
def test_the_client_role_does_so_too(certificates: Certificates, suite: Suite) -> None:
    identity = certificates.rsa_server if "_RSA_" in suite.name else certificates.server
    context = server_context(identity)
    context.set_max_proto_version(suite.version)
    context.set_cipher_list(SUITE_NAMES[suite.code].encode() if suite.version == TLS12 else b"ALL")
    if suite.version == TLS13:
        context.set_tls13_ciphersuites(SUITE_NAMES[suite.code].encode())
    server = SSL.Connection(context)
    server.set_accept_state()
    handshake = OpenSSLEngine(role=Role.CLIENT).start("192.0.2.9", 443)

    flight = handshake.feed(b"")
    while flight:
        server.bio_write(flight)
        try:
            server.do_handshake()
            server.sendall(b"banner")
        except SSL.WantReadError:
            pass
        flight = handshake.feed(_pending(server))
    end = End(handshake.session())

    assert end.session.suite is suite
    received = end.open(b"")
    server.bio_write(end.seal(b"up"))
    up = server.recv(100)
    received += end.open(_pending(server))
    server.sendall(b"down")
    assert (up, received + end.open(_pending(server))) == (b"up", b"bannerdown")


def _pending(connection: SSL.Connection) -> bytes:
    try:
        return connection.bio_read(1 << 20)
    except SSL.WantReadError:
        return b""


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_the_engine_talks_to_itself(certificates: Certificates, step: int) -> None:
    server = OpenSSLEngine([credential(certificates.server)], alpn=("imap",)).start("c", 1)
    client = OpenSSLEngine(
        role=Role.CLIENT, trusted=(certificates.root.certificate,), alpn=("imap",)
    ).start("s", 2, server_name="localhost")
    upwards, downwards = client.feed(b""), b""

    while not server.done:
        downwards += b"".join(
            server.feed(upwards[i : i + step]) for i in range(0, len(upwards), step)
        )
        upwards = b"".join(
            client.feed(downwards[i : i + step]) for i in range(0, len(downwards), step)
        )
        downwards = b""
    # the tickets went out with the server's last flight
    at_server, at_client = End(server.session()), End(client.session())

    assert (at_server.session.peer.sni, at_server.session.peer.alpn) == ("localhost", "imap")
    assert at_client.session.peer.alpn == "imap"
    assert at_client.session.peer.certificates[0] == der(certificates.server)
    assert at_server.session.peer.group == "X25519MLKEM768"
    assert at_server.open(at_client.seal(b"up")) == b"up"


@versions
def test_what_the_client_told_is_in_the_session(certificates: Certificates, version: int) -> None:
    engine = OpenSSLEngine([credential(certificates.server)], alpn=("h2", "http/1.1"))
    client = Client(version=version, sni=b"www.example.org", alpn=(b"spdy", b"http/1.1", b"h2"))

    session = established(engine, client)

    assert session.version == version
    assert session.peer.address == "192.0.2.7"
    assert session.peer.port == 5555
    assert session.peer.sni == "www.example.org"
    assert session.peer.alpn == "h2"  # our preference, not the client's
    assert client.connection.get_alpn_proto_negotiated() == b"h2"
    assert not session.peer.resumed
    assert session.peer.certificates == ()


def test_the_key_exchange_is_post_quantum_by_default(engine: OpenSSLEngine) -> None:
    assert established(engine, Client()).peer.group == "X25519MLKEM768"


def test_a_client_without_alpn_is_served_where_alpn_is_offered(certificates: Certificates) -> None:
    engine = OpenSSLEngine([credential(certificates.server)], alpn=("h2",))

    assert established(engine, Client()).peer.alpn == ""


@versions
def test_the_client_can_verify_our_chain(
    engine: OpenSSLEngine, certificates: Certificates, version: int
) -> None:
    echoes(*_both(engine, Client(version=version, trusted=certificates.root)))


def _both(engine: OpenSSLEngine, client: Client) -> tuple[Session, Client]:
    return established(engine, client), client


@versions
@pytest.mark.parametrize("step", [1, 2, 5, 100])
def test_flights_in_small_pieces_are_the_same_flights(
    engine: OpenSSLEngine, version: int, step: int
) -> None:
    client = Client(version=version)

    echoes(established(engine, client, step=step), client)


@versions
def test_a_hello_in_records_of_one_byte_is_understood(engine: OpenSSLEngine, version: int) -> None:
    client = Client(version=version, sni=b"tiny.example")
    hello = client.feed(b"")
    tiny = b"".join(b"\x16\x03\x01\x00\x01" + hello[i : i + 1] for i in range(5, len(hello)))
    handshake = engine.start("192.0.2.7", 5555)

    flight = handshake.feed(tiny)
    while flight:
        answer = client.feed(flight)
        flight = handshake.feed(answer)

    assert handshake.done
    assert parse_client_hello(first_message(handshake.hello)).sni == b"tiny.example"
    echoes(handshake.session(), client)


@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_a_hello_in_fragments_may_come_one_by_one(engine: OpenSSLEngine, size: int) -> None:
    client = Client(version=V13)
    hello = client.feed(b"")[5:]
    handshake = engine.start("192.0.2.7", 5555)
    flight = b""

    for piece in pieces(hello, [size]):
        assert flight == b""
        flight = handshake.feed(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece)
    client.feed(handshake.feed(client.feed(flight)))

    echoes(handshake.session(), client)


def test_an_alert_instead_of_the_rest_of_the_hello_is_understood(engine: OpenSSLEngine) -> None:
    handshake = engine.start("192.0.2.7", 5555)
    handshake.feed(b"\x16\x03\x01\x00\x04\x01\x00\x01\x00")

    with pytest.raises(HandshakeError) as caught:
        handshake.feed(plaintext_alert(Alert.HANDSHAKE_FAILURE))

    assert caught.value.token not in EMPTY_TOKENS


def test_a_certificate_that_python_cannot_parse_is_refused_as_any_other(
    strict: OpenSSLEngine, people: ClientIdentities
) -> None:
    """OpenSSL takes a time that is none, and reports it to us before it refuses it."""
    client = Client(version=V12, identity=people.good)
    handshake = strict.start("192.0.2.7", 5555)
    flight = client.feed(handshake.feed(client.feed(b"")))
    leaf = der(people.good)
    not_after = people.good.certificate.not_valid_after_utc.strftime("%y%m%d").encode()
    at = flight.index(leaf) + leaf.rindex(not_after)

    with pytest.raises(HandshakeError) as caught:
        handshake.feed(flight[:at] + b"x" + flight[at + 1 :])

    assert caught.value.token == "certificate_verify_failed"
    assert caught.value.about_certificate
    assert len(caught.value.certificates[0]) == len(leaf)


def test_a_forged_certificate_is_named_as_the_fault(
    strict: OpenSSLEngine, people: ClientIdentities
) -> None:
    client = Client(version=V12, identity=people.good)
    handshake = strict.start("192.0.2.7", 5555)
    flight = client.feed(handshake.feed(client.feed(b"")))

    with pytest.raises(HandshakeError) as caught:
        handshake.feed(flight.replace(b"a client", b"a forger"))
    client.feed(caught.value.output)

    assert caught.value.token == "certificate_verify_failed"
    assert caught.value.about_certificate
    assert b"a forger" in caught.value.certificates[0]
    assert caught.value.alert is not None
    assert client.error.endswith(alert_name(caught.value.alert).replace("_", " "))


def test_finished_and_data_in_one_segment_are_both_used(engine: OpenSSLEngine) -> None:
    session = established(engine, Client(version=V13), data=b"early bird")

    assert session.unread
    assert End(session).open(b"") == b"early bird"


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 30])
def test_part_of_a_record_behind_finished_is_kept(engine: OpenSSLEngine, cut: int) -> None:
    client = Client(version=V13)
    handshake = engine.start("192.0.2.7", 5555)
    finished = client.feed(handshake.feed(client.feed(b"")))
    data = client.seal(b"in two parts")

    handshake.feed(finished + data[:cut])
    handshake.feed(data[cut : cut + 3])
    end = End(handshake.session())

    assert end.open(data[cut + 3 :]) == b"in two parts"


@versions
def test_what_is_sealed_after_the_tickets_opens_at_the_client(
    engine: OpenSSLEngine, version: int
) -> None:
    client = Client(version=version)

    session = established(engine, client)

    assert session.write.sequence == (2 if version == V13 else 1)
    assert session.read.sequence == (0 if version == V13 else 1)
    echoes(session, client)


@versions
def test_a_ticket_resumes_the_session(engine: OpenSSLEngine, version: int) -> None:
    first = Client(version=version)
    echoes(established(engine, first), first)
    second = Client(context=first.context, session=first.connection.get_session())

    session = established(engine, second, data=b"early bird")

    assert session.peer.resumed
    end = End(session)
    assert end.open(b"") == b"early bird"
    second.feed(end.seal(b"answer"))
    assert (second.received, second.error) == (b"answer", "")


@versions
def test_a_ticket_of_another_engine_means_a_full_handshake(
    engine: OpenSSLEngine, certificates: Certificates, version: int
) -> None:
    first = Client(version=version)
    echoes(established(engine, first), first)
    other = OpenSSLEngine([credential(certificates.server)])
    second = Client(context=first.context, session=first.connection.get_session())

    session = established(other, second)

    assert not session.peer.resumed
    echoes(session, second)


def test_handshakes_may_take_turns(engine: OpenSSLEngine) -> None:
    clients = [Client(version=version) for version in (V12, V13, V13, V12)]
    handshakes = [engine.start(str(i), i) for i in range(len(clients))]
    flights = [client.feed(b"") for client in clients]

    while any(flights):
        outputs = [
            handshake.feed(f) if f else b""
            for handshake, f in zip(handshakes, flights, strict=True)
        ]
        flights = [client.feed(o) if o else b"" for client, o in zip(clients, outputs, strict=True)]

    for handshake, client in zip(handshakes, clients, strict=True):
        echoes(handshake.session(), client)


# One owner


def test_a_session_is_given_once(engine: OpenSSLEngine) -> None:
    handshake, _ = connect(engine, Client())
    handshake.session()

    with pytest.raises(Consumed):
        handshake.session()
    with pytest.raises(Consumed):
        handshake.feed(b"data")


def test_there_is_no_session_before_the_end(engine: OpenSSLEngine) -> None:
    handshake = engine.start("192.0.2.7", 5555)
    handshake.feed(Client().feed(b""))

    with pytest.raises(HandfastBug):
        handshake.session()


def test_a_handshake_that_failed_is_at_its_end(engine: OpenSSLEngine) -> None:
    handshake = engine.start("192.0.2.7", 5555)
    with pytest.raises(HandshakeError):
        handshake.feed(b"garbage")

    with pytest.raises(Consumed):
        handshake.feed(b"garbage")
    with pytest.raises(Consumed):
        handshake.session()


# Client certificates


@versions
def test_a_good_certificate_is_in_the_session(
    strict: OpenSSLEngine, people: ClientIdentities, version: int
) -> None:
    client = Client(version=version, identity=people.good)

    session = established(strict, client)

    assert session.peer.certificates[0] == der(people.good)
    echoes(session, client)


@versions
def test_a_certificate_below_an_intermediate_is_good(
    strict: OpenSSLEngine, people: ClientIdentities, version: int
) -> None:
    session = established(strict, Client(version=version, identity=people.below))

    assert session.peer.certificates[:2] == (der(people.below), der(people.intermediate))


@versions
def test_a_resumed_session_has_the_leaf_of_the_first(
    strict: OpenSSLEngine, people: ClientIdentities, version: int
) -> None:
    first = Client(version=version, identity=people.good)
    echoes(established(strict, first), first)
    second = Client(context=first.context, session=first.connection.get_session())

    session = established(strict, second)

    assert session.peer.resumed
    assert session.peer.certificates[0] == der(people.good)
    echoes(session, second)


@versions
@pytest.mark.parametrize("anchor", ["intermediate", "leaf", "pinned"])
def test_what_is_trusted_needs_no_root_above_it(
    certificates: Certificates, people: ClientIdentities, version: int, anchor: str
) -> None:
    shown, trusted = {
        "intermediate": (people.below, people.intermediate),
        "leaf": (people.good, people.good),
        "pinned": (people.pinned, people.pinned),
    }[anchor]
    engine = OpenSSLEngine(
        [credential(certificates.server)], trusted=(trusted.certificate,), require=True
    )

    session = established(engine, Client(version=version, identity=shown))
    error = refusal(engine, Client(version=version, identity=people.stranger))

    assert session.peer.certificates[0] == der(shown)
    assert error.about_certificate


@versions
def test_an_optional_certificate_may_be_missing_but_not_bad(
    certificates: Certificates, people: ClientIdentities, version: int
) -> None:
    engine = OpenSSLEngine(
        [credential(certificates.server)], trusted=(people.root.certificate,), require=False
    )

    without = established(engine, Client(version=version))
    shown = established(engine, Client(version=version, identity=people.good))
    error = refusal(engine, Client(version=version, identity=people.stranger))

    assert without.peer.certificates == ()
    assert shown.peer.certificates[0] == der(people.good)
    assert (error.token, error.about_certificate) == ("certificate_verify_failed", True)


REFUSED = {
    "stranger": (Alert.UNKNOWN_CA, "tlsv1 alert unknown ca", "issuer"),
    "expired": (Alert.CERTIFICATE_EXPIRED, "tls alert certificate expired", "expired"),
    "early": (Alert.BAD_CERTIFICATE, "tls alert bad certificate", "not yet valid"),
    "pinned": (Alert.UNKNOWN_CA, "tlsv1 alert unknown ca", "self signed"),
    "no_client": (Alert.UNSUPPORTED_CERTIFICATE, "tls alert unsupported certificate", "purpose"),
}


@versions
@pytest.mark.parametrize("who", REFUSED)
def test_a_bad_certificate_is_told_to_the_client_and_to_the_log(
    strict: OpenSSLEngine, people: ClientIdentities, version: int, who: str
) -> None:
    shown: Identity = getattr(people, who)
    alert, seen, word = REFUSED[who]
    client = Client(version=version, identity=shown)

    error = refusal(strict, client)

    assert client.error == seen
    assert error.alert == alert
    assert error.token == "certificate_verify_failed"
    assert error.outcome is Outcome.DENIED
    assert error.about_certificate
    assert not error.received
    assert error.certificates == (der(shown),)
    assert word in error.reason


@versions
def test_a_missing_certificate_is_told_to_the_client_and_to_the_log(
    strict: OpenSSLEngine, version: int
) -> None:
    client = Client(version=version)

    error = refusal(strict, client)

    assert error.token == "peer_did_not_return_a_certificate"
    assert (error.about_certificate, error.outcome) == (True, Outcome.DENIED)
    assert error.certificates == ()
    if version == V13:
        assert (error.alert, client.error) == (
            Alert.CERTIFICATE_REQUIRED, "tlsv13 alert certificate required"
        )  # fmt: skip
    else:
        assert (error.alert, client.error) == (
            Alert.HANDSHAKE_FAILURE, "tls alert handshake failure"
        )  # fmt: skip


def test_a_refused_certificate_is_not_held_against_the_next_client(
    strict: OpenSSLEngine, people: ClientIdentities
) -> None:
    refusal(strict, Client(identity=people.stranger))

    error = refusal(strict, Client())

    assert error.certificates == ()
    assert established(strict, Client(identity=people.good)).peer.certificates


# Handshakes that fail


def test_no_shared_cipher_is_refused(engine: OpenSSLEngine) -> None:
    client = Client(suites="ECDHE-RSA-AES128-GCM-SHA256")  # the key is ECDSA

    error = refusal(engine, client)

    assert (error.token, error.alert) == ("no_shared_cipher", Alert.HANDSHAKE_FAILURE)
    assert client.error == "tls alert handshake failure"
    assert error.outcome is Outcome.DENIED
    assert not error.about_certificate


@pytest.mark.parametrize(
    "name", ["AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA", "DHE-RSA-AES128-GCM-SHA256"]
)
def test_suites_without_ecdhe_or_aead_are_not_spoken(rsa_engine: OpenSSLEngine, name: str) -> None:
    assert refusal(rsa_engine, Client(suites=name)).token == "no_shared_cipher"


def test_no_shared_protocol_is_refused(certificates: Certificates) -> None:
    engine = OpenSSLEngine([credential(certificates.server)], alpn=("h2",))
    client = Client(alpn=(b"spdy/1",))

    error = refusal(engine, client)

    assert (error.token, error.alert) == ("no_application_protocol", Alert.NO_APPLICATION_PROTOCOL)
    assert client.error == "tlsv1 alert no application protocol"
    assert "spdy/1" in error.reason


@versions
def test_a_client_that_gives_up_is_not_denied(
    engine: OpenSSLEngine, people: ClientIdentities, version: int
) -> None:
    stranger = people.stranger.issuer
    client = Client(version=version, trusted=stranger)

    error = refusal(engine, client)

    assert client.error == "certificate verify failed"
    assert (error.received, error.alert) == (True, Alert.UNKNOWN_CA)
    assert error.outcome is Outcome.FAILED
    assert not error.about_certificate
    assert error.output == b""


def feed_all(handshake: OpenSSLHandshake, flights: Iterable[bytes]) -> None:
    for flight in flights:
        handshake.feed(flight)


def first_error(engine: OpenSSLEngine, data: bytes) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        engine.start("192.0.2.7", 5555).feed(data)
    return caught.value


TOO_MUCH = Alert.RECORD_OVERFLOW
FIRST_BYTES = {
    "http": (b"GET / HTTP/1.1\r\n\r\n", "http_request", Alert.UNEXPECTED_MESSAGE),
    "http post": (b"POST /x HTTP/1.1\r\n\r\n", "http_request", Alert.UNEXPECTED_MESSAGE),
    "http2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http_request", Alert.UNEXPECTED_MESSAGE),
    "ssh": (b"SSH-2.0-OpenSSH_9.9\r\n", "not_tls", Alert.UNEXPECTED_MESSAGE),
    "zeros": (bytes(100), "not_tls", Alert.UNEXPECTED_MESSAGE),
    "one byte": (b"\x00", "not_tls", Alert.UNEXPECTED_MESSAGE),
    "alert first": (plaintext_alert(40), "not_tls", Alert.UNEXPECTED_MESSAGE),
    "ccs first": (b"\x14\x03\x03\x00\x01\x01", "not_tls", Alert.UNEXPECTED_MESSAGE),
    "data first": (b"\x17\x03\x03\x00\x01x", "not_tls", Alert.UNEXPECTED_MESSAGE),
    "sslv2": (b"\x80\x2e\x01\x00\x02\x00\x15", "unsupported_protocol", Alert.PROTOCOL_VERSION),
    "largest length": (b"\x16\x03\x01\xff\xff", "record_overflow", TOO_MUCH),
    "too long": (b"\x16\x03\x01\x41\x01", "record_overflow", TOO_MUCH),
    "empty record": (b"\x16\x03\x01\x00\x00", "empty_record", Alert.UNEXPECTED_MESSAGE),
    "long message": (
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "handshake_too_long", Alert.DECODE_ERROR
    ),
    "empty hello": (
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "length_too_short", Alert.DECODE_ERROR
    ),
    "server hello": (
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x03", "unexpected_message",
        Alert.UNEXPECTED_MESSAGE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FIRST_BYTES)
def test_what_is_no_hello_gets_its_alert(engine: OpenSSLEngine, what: str) -> None:
    data, token, alert = FIRST_BYTES[what]

    error = first_error(engine, data)

    assert (error.token, error.alert) == (token, alert)
    assert error.output == plaintext_alert(alert)
    assert error.outcome is Outcome.DENIED
    assert not error.received


@pytest.mark.parametrize("what", ["http", "ssh", "largest length", "empty record", "long message"])
def test_it_gets_the_same_alert_byte_by_byte(engine: OpenSSLEngine, what: str) -> None:
    data, _, alert = FIRST_BYTES[what]
    handshake = engine.start("192.0.2.7", 5555)

    with pytest.raises(HandshakeError) as caught:
        feed_all(handshake, pieces(data, [1]))

    assert caught.value.alert == alert


def test_http_is_named_when_it_comes_byte_by_byte(engine: OpenSSLEngine) -> None:
    handshake = engine.start("192.0.2.7", 5555)

    with pytest.raises(HandshakeError) as caught:
        feed_all(handshake, pieces(b"GET / HTTP/1.1\r\n", [1]))

    assert caught.value.token == "http_request"


def test_close_notify_inside_the_handshake_is_the_peer_giving_up(engine: OpenSSLEngine) -> None:
    handshake = engine.start("192.0.2.1", 1)
    handshake.feed(Client().feed(b""))

    with pytest.raises(HandshakeError) as caught:
        handshake.feed(b"\x15\x03\x03\x00\x02\x01\x00")

    assert caught.value.token == "eof"
    assert caught.value.outcome is Outcome.FAILED


def test_a_full_tls12_handshake_is_not_resumed_in_the_client_role(engine: OpenSSLEngine) -> None:
    connector = OpenSSLEngine(role=Role.CLIENT)
    connector._context.set_max_proto_version(SSL.TLS1_2_VERSION)
    client = connector.start("192.0.2.9", 443)
    server = engine.start("192.0.2.1", 1)

    flight = client.feed(b"")
    while not client.done:
        flight = client.feed(server.feed(flight))

    assert not client.session().peer.resumed
    assert not server.session().peer.resumed


@pytest.mark.parametrize("offered", [0x0300, 0x0301, 0x0302])
def test_an_old_version_is_refused_as_such(engine: OpenSSLEngine, offered: int) -> None:
    client_hello = (
        offered.to_bytes(2, "big") + bytes(range(32)) + b"\x00" + b"\x00\x04\xc0\x09\x00\x2f"
        + b"\x01\x00"
    )  # fmt: skip
    message = b"\x01" + len(client_hello).to_bytes(3, "big") + client_hello
    record = b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message

    error = first_error(engine, record)

    assert error.token == "unsupported_protocol"
    assert error.alert == Alert.PROTOCOL_VERSION
    assert error.output[-2:] == bytes((2, Alert.PROTOCOL_VERSION))
    assert error.outcome is Outcome.DENIED


def test_the_hello_is_there_for_the_log_when_the_handshake_fails(engine: OpenSSLEngine) -> None:
    handshake, error = connect(
        engine, Client(suites="ECDHE-RSA-AES128-GCM-SHA256", sni=b"rsa.example")
    )

    hello = parse_client_hello(first_message(handshake.hello))

    assert error is not None
    assert hello.sni == b"rsa.example"
    assert 0xC02F in hello.suites


@versions
def test_garbage_behind_the_hello_is_refused(engine: OpenSSLEngine, version: int) -> None:
    client = Client(version=version)
    handshake = engine.start("192.0.2.7", 5555)
    handshake.feed(client.feed(b""))

    with pytest.raises(HandshakeError) as caught:
        handshake.feed(b"garbage instead of a flight")

    assert (caught.value.token, caught.value.alert) == (
        "unknown_record", Alert.UNEXPECTED_MESSAGE
    )  # fmt: skip


@versions
def test_a_damaged_last_flight_is_refused_and_the_client_hears_it(
    engine: OpenSSLEngine, version: int
) -> None:
    client = Client(version=version)
    handshake = engine.start("192.0.2.7", 5555)
    flight = bytearray(client.feed(handshake.feed(client.feed(b""))))
    flight[-1] ^= 1

    with pytest.raises(HandshakeError) as caught:
        handshake.feed(bytes(flight))
    client.feed(caught.value.output)

    assert caught.value.alert == Alert.BAD_RECORD_MAC
    assert caught.value.outcome is Outcome.DENIED
    assert "bad record mac" in client.error


def test_a_handshake_that_never_ends_is_cut_off(engine: OpenSSLEngine) -> None:
    client = Client(version=V13)
    handshake = engine.start("192.0.2.7", 5555)
    handshake.feed(client.feed(b""))

    with pytest.raises(HandshakeError) as caught:
        feed_all(handshake, [b"\x17\x03\x03\x40\x00" + bytes(1000)] * (MAX_HANDSHAKE // 500))

    assert caught.value.alert is not None


def test_a_flood_of_change_cipher_specs_is_cut_off(engine: OpenSSLEngine) -> None:
    client = Client(version=V13)
    handshake = engine.start("192.0.2.7", 5555)
    handshake.feed(client.feed(b""))

    with pytest.raises(HandshakeError) as caught:
        feed_all(handshake, [b"\x14\x03\x03\x00\x01\x01"] * (MAX_HANDSHAKE // 6 + 2))

    assert caught.value.alert is not None


def test_no_error_shows_a_secret(strict: OpenSSLEngine, people: ClientIdentities) -> None:
    client = Client(version=V12, identity=people.stranger)

    error = refusal(strict, client)

    master, *_ = client.tls12_secrets()
    assert master.hex() not in repr(error) + str(error) + repr(vars(error))
    assert error.__cause__ is None


def test_a_key_that_openssl_refuses_is_a_mistake_of_the_configuration() -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - it has to be weak
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weak.example")])
    certificate = (
        x509.CertificateBuilder(name, name, weak.public_key(), 1, NOW, NOW + DAY)
        .sign(weak, hashes.SHA256())
    )  # fmt: skip

    with pytest.raises(ConfigError, match=r"weak\.example.*2048"):
        OpenSSLEngine([Credential((certificate,), weak)])


# Anything at all


def check_refusal(error: HandshakeError) -> None:
    """Whatever was sent, the log has a word for it and the peer has an answer."""
    assert error.reason
    assert error.token not in EMPTY_TOKENS
    assert error.alert is None or error.received or error.output


@settings(max_examples=300, deadline=None)
@given(
    head=st.sampled_from(
        [b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x40", b"\x16\x03\x01\x00\x40\x01"]
    ),
    flights=st.lists(st.binary(max_size=120), min_size=1, max_size=4),
)
@example(head=b"", flights=[b"", b""])
@example(head=b"\x16", flights=[b"\x02\x00"])
def test_any_bytes_give_a_handshake_error_or_nothing(
    engine: OpenSSLEngine, head: bytes, flights: list[bytes]
) -> None:
    handshake = engine.start("192.0.2.7", 5555)

    try:
        feed_all(handshake, [head + flights[0], *flights[1:]])
    except HandshakeError as error:
        check_refusal(error)


@settings(max_examples=400, deadline=None)
@given(
    version=st.sampled_from([V12, V13]),
    certificate=st.booleans(),
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), min_size=1, max_size=3),
    which=st.integers(0, 1),
    cut=st.integers(0, 4000),
)
def test_mutated_flights_give_a_handshake_error_or_nothing(
    strict: OpenSSLEngine,
    people: ClientIdentities,
    version: int,
    certificate: bool,
    flips: list[tuple[int, int]],
    which: int,
    cut: int,
) -> None:
    client = Client(version=version, identity=people.good if certificate else None)
    handshake = strict.start("192.0.2.7", 5555)
    flight = client.feed(b"")

    try:
        for round_trip in range(4):
            if round_trip == which:
                flight = damaged(flight, flips)
            output = b"".join(map(handshake.feed, (flight[:cut], flight[cut:])))
            flight = client.feed(output)
    except HandshakeError as error:
        check_refusal(error)
        client.feed(error.output)


def damaged(flight: bytes, flips: list[tuple[int, int]]) -> bytes:
    flipped = bytearray(flight)
    for place, mask in flips if flight else []:
        flipped[place % len(flipped)] ^= mask
    return bytes(flipped)


@versions
def test_a_resumed_session_has_the_name_that_is_asked_for_now(
    certificates: Certificates, version: int
) -> None:
    names = [issue(name, certificates.root) for name in ("a.test", "b.test")]
    engine = OpenSSLEngine([credential(each) for each in names])
    first = Client(version=version, sni=b"a.test")
    assert established(engine, first).peer.sni == "a.test"

    second = Client(context=first.context, sni=b"b.test", session=first.connection.get_session())
    peer = established(engine, second).peer

    assert peer.resumed
    assert peer.sni == "b.test"


def test_the_dot_of_the_root_makes_no_other_name(certificates: Certificates) -> None:
    names = [issue(name, certificates.root) for name in ("a.test", "b.test")]
    engine = OpenSSLEngine([credential(each) for each in names])
    client = Client(sni=b"B.test.")

    established(engine, client)

    shown = client.connection.get_peer_certificate(as_cryptography=True)
    assert shown == names[1].certificate


def test_a_hello_that_cannot_be_read_offers_no_post_quantum_key_exchange(
    certificates: Certificates,
) -> None:
    engine = OpenSSLEngine([credential(certificates.server)], post_quantum=True)
    hello = bytearray(Client(version=V13).feed(b""))
    place = hello.find(b"\x00\x0a\x00")  # supported_groups
    assert place > 0
    length = int.from_bytes(hello[place + 2 : place + 4], "big")
    hello[place + 4 : place + 6] = length.to_bytes(2, "big")  # its list ends behind it

    with pytest.raises(HandshakeError) as caught:
        engine.start("192.0.2.7", 5555).feed(bytes(hello))

    assert caught.value.token == "no_post_quantum"
