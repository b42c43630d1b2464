"""What one listener shows and takes: certificates by name, versions, suites, post-quantum."""

from __future__ import annotations

import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL

from handfast.errors import ConfigError
from handfast.tls.alerts import Alert
from handfast.tls.hello import first_message, parse_client_hello
from handfast.tls.keys import TLS12, TLS13
from handfast.tls.openssl import OpenSSLEngine
from harness.pki import issue
from unit.tls.engines import Client, established, refusal
from unit.tls.naming import ROOT, server

INTERMEDIATE = issue("test intermediate of names", ROOT, ca=True)
VERSIONS = {TLS12: SSL.TLS1_2_VERSION, TLS13: SSL.TLS1_3_VERSION}
AES128, AES256 = "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"
ECDHE128 = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"


def certificates_shown(client: Client) -> list[x509.Certificate]:
    return client.connection.get_peer_cert_chain(as_cryptography=True) or []


def shown(client: Client) -> list[str]:
    """The subjects of the chain that the client was shown."""
    return [
        each.subject.rfc4514_string().removeprefix("CN=") for each in certificates_shown(client)
    ]


class WithoutHybrid(Client):
    """A client of the standard library's that offers one classic group."""

    def __init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ecdh_curve("prime256v1")
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        self.done = False
        self.error = ""

    def feed(self, data: bytes) -> bytes:
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
            self.done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error.reason
        return self._outgoing.read()


@pytest.fixture(scope="module")
def several() -> OpenSSLEngine:
    return OpenSSLEngine(
        (
            server("default.test", cn="default"),
            server("*.example.com", cn="wildcard"),
            server("www.example.com", cn="exact", issuer=INTERMEDIATE),
        )
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("sni", "chain"),
    [
        (b"", ["default"]),
        (b"elsewhere.test", ["default"]),
        (b"mail.example.com", ["wildcard"]),
        (b"www.example.com", ["exact", "test intermediate of names"]),
        (b"mail.example.com.", ["wildcard"]),
        (b"WWW.Example.COM", ["exact", "test intermediate of names"]),
    ],
)
def test_the_name_picks_the_certificate_and_its_own_chain(
    several: OpenSSLEngine, version: int, sni: bytes, chain: list[str]
) -> None:
    client = Client(sni=sni, version=VERSIONS[version])

    session = established(several, client)

    assert shown(client) == chain
    assert session.peer.sni == sni.decode()


@pytest.mark.parametrize(
    ("suites", "kind"),
    [
        ("ECDHE-RSA-AES128-GCM-SHA256", rsa.RSAPublicKey),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", ec.EllipticCurvePublicKey),
    ],
)
def test_the_client_gets_a_key_that_it_can_verify(suites: str, kind: type) -> None:
    engine = OpenSSLEngine((server("a.test"), server("a.test", kind="rsa")))
    client = Client(sni=b"a.test", suites=suites)

    established(engine, client)

    assert isinstance(certificates_shown(client)[0].public_key(), kind)


def test_a_ticket_of_one_name_is_good_at_the_other_context(several: OpenSSLEngine) -> None:
    for version in VERSIONS.values():
        first = Client(sni=b"www.example.com", version=version)
        established(several, first)
        session = first.connection.get_session()
        again = Client(sni=b"www.example.com", context=first.context, session=session)

        assert established(several, again).peer.resumed


def test_a_ticket_is_good_without_the_name_too(several: OpenSSLEngine) -> None:
    """Whether it may be used for another name is for the client to say; see RFC 8446, 4.6.1."""
    first = Client(version=SSL.TLS1_2_VERSION)
    established(several, first)
    session = first.connection.get_session()
    again = Client(context=first.context, session=session)

    assert established(several, again).peer.resumed


@pytest.mark.parametrize("ours", VERSIONS)
@pytest.mark.parametrize("theirs", VERSIONS)
def test_only_the_versions_that_are_allowed_are_spoken(ours: int, theirs: int) -> None:
    engine = OpenSSLEngine((server("a.test"),), versions=(ours,))
    client = Client(version=VERSIONS[theirs])

    if ours == theirs:
        assert established(engine, client).version == ours
    else:
        error = refusal(engine, client)
        assert error.token == "unsupported_protocol"
        assert error.alert == Alert.PROTOCOL_VERSION


@pytest.mark.parametrize(
    ("suites", "version", "theirs"),
    [
        ((AES256,), TLS13, ""),
        ((ECDHE128,), TLS12, ""),
        ((AES256, ECDHE128), TLS13, ""),
        ((AES256, ECDHE128), TLS12, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    ],
)
def test_only_the_suites_that_are_allowed_are_spoken(
    suites: tuple[str, ...], version: int, theirs: str
) -> None:
    engine = OpenSSLEngine((server("a.test"),), suites=suites)

    session = established(engine, Client(suites=theirs))

    assert (session.version, session.suite.name in suites) == (version, True)


@pytest.mark.parametrize(
    ("suites", "theirs"),
    [
        ((AES256,), AES128),
        ((ECDHE128, AES256), "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ],
)
def test_a_client_without_one_of_the_suites_is_refused(
    suites: tuple[str, ...], theirs: str
) -> None:
    engine = OpenSSLEngine((server("a.test"),), suites=suites)

    error = refusal(engine, Client(suites=theirs))

    assert error.alert == Alert.HANDSHAKE_FAILURE


@pytest.mark.parametrize(
    ("versions", "suites", "post_quantum"),
    [
        ((TLS12,), (AES128,), False),
        ((TLS13,), (ECDHE128,), False),
        ((TLS12,), (), True),
        ((TLS12, TLS13), (ECDHE128,), True),
    ],
)
def test_what_leaves_no_version_is_a_mistake_of_the_configuration(
    versions: tuple[int, ...], suites: tuple[str, ...], post_quantum: bool
) -> None:
    with pytest.raises(ConfigError, match="no TLS version is left"):
        OpenSSLEngine(
            (server("a.test"),), versions=versions, suites=suites, post_quantum=post_quantum
        )


@pytest.fixture(scope="module")
def quantum() -> OpenSSLEngine:
    return OpenSSLEngine((server("a.test"),), post_quantum=True)


def test_a_client_with_hybrid_key_exchange_is_served(quantum: OpenSSLEngine) -> None:
    session = established(quantum, Client())

    assert (session.peer.group, session.version) == ("X25519MLKEM768", TLS13)


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_a_client_without_it_is_refused_before_any_is_computed(
    quantum: OpenSSLEngine, step: int
) -> None:
    client = WithoutHybrid()
    error = refusal(quantum, client, step=step)

    assert error.token == "no_post_quantum"
    assert error.alert == Alert.INSUFFICIENT_SECURITY
    assert error.output == b"\x15\x03\x03\0\x02\x02\x47"
    assert client.error == "TLSV1_ALERT_INSUFFICIENT_SECURITY"


def test_an_old_version_is_refused_as_not_post_quantum(quantum: OpenSSLEngine) -> None:
    error = refusal(quantum, Client(version=SSL.TLS1_2_VERSION))

    assert error.alert == Alert.INSUFFICIENT_SECURITY


def test_without_the_policy_such_a_client_is_served() -> None:
    engine = OpenSSLEngine((server("a.test"),))

    assert established(engine, WithoutHybrid()).peer.group == "secp256r1"


def test_keys_of_one_kind_do_not_shadow_the_chain_of_the_other() -> None:
    engine = OpenSSLEngine(
        (
            server("a.test", cn="ecdsa", issuer=INTERMEDIATE),
            server("a.test", cn="rsa", kind="rsa"),
        )
    )
    ecdsa = Client(suites="ECDHE-ECDSA-AES128-GCM-SHA256")
    rsa = Client(suites="ECDHE-RSA-AES128-GCM-SHA256")
    established(engine, ecdsa)
    established(engine, rsa)

    assert shown(ecdsa) == ["ecdsa", "test intermediate of names"]
    assert shown(rsa) == ["rsa"]


def test_the_hello_of_a_default_client_offers_the_hybrid_group() -> None:
    hello = parse_client_hello(first_message(Client().feed(b"")))

    assert 0x11EC in hello.groups
