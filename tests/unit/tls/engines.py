"""Clients and servers of pyOpenSSL's own, to hold handfast's engine against."""

from __future__ import annotations

from contextlib import suppress

from OpenSSL import SSL, crypto

from handfast.tls.certificates import Credential
from handfast.tls.handshake import HandshakeError
from handfast.tls.openssl import OpenSSLEngine
from handfast.tls.openssl_handshake import OpenSSLHandshake
from handfast.tls.session import Session
from harness.pki import Identity

# OpenSSL's names, which differ from the registry's for TLS 1.2.
SUITE_NAMES = {
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    0xC02B: "ECDHE-ECDSA-AES128-GCM-SHA256",
    0xC02C: "ECDHE-ECDSA-AES256-GCM-SHA384",
    0xC02F: "ECDHE-RSA-AES128-GCM-SHA256",
    0xC030: "ECDHE-RSA-AES256-GCM-SHA384",
    0xCCA8: "ECDHE-RSA-CHACHA20-POLY1305",
    0xCCA9: "ECDHE-ECDSA-CHACHA20-POLY1305",
}


def credential(identity: Identity) -> Credential:
    return Credential(identity.chain, identity.key)


def server_context(identity: Identity) -> SSL.Context:
    """A plain OpenSSL server, without anything of handfast."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(identity.certificate)
    context.use_privatekey(identity.key)
    return context


class Client:
    """An OpenSSL client between memory buffers; `feed` takes and gives ciphertext."""

    def __init__(
        self,
        *,
        version: int | None = None,
        suites: str = "",
        sni: bytes = b"",
        alpn: tuple[bytes, ...] = (),
        identity: Identity | None = None,
        trusted: Identity | None = None,
        context: SSL.Context | None = None,
        session: SSL.Session | None = None,
    ) -> None:
        self.context = context or self._context(version, suites, alpn, identity, trusted)
        self.connection = SSL.Connection(self.context)
        self.connection.set_connect_state()
        if sni:
            self.connection.set_tlsext_host_name(sni)
        if session is not None:
            self.connection.set_session(session)
        self.received = b""
        self.done = False
        self.closed = False
        self.error = ""

    def _context(
        self,
        version: int | None,
        suites: str,
        alpn: tuple[bytes, ...],
        identity: Identity | None,
        trusted: Identity | None,
    ) -> SSL.Context:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        if suites:
            is_13 = suites.startswith("TLS_")
            version = SSL.TLS1_3_VERSION if is_13 else SSL.TLS1_2_VERSION
            choose = context.set_tls13_ciphersuites if is_13 else context.set_cipher_list
            choose(suites.encode())
        if version is not None:
            context.set_min_proto_version(version)
            context.set_max_proto_version(version)
        if alpn:
            context.set_alpn_protos(list(alpn))
        if identity is not None:
            context.use_certificate(identity.certificate)
            context.use_privatekey(identity.key)
            for above in identity.chain[1:]:
                context.add_extra_chain_cert(above)
        if trusted is not None:
            store = context.get_cert_store()
            assert store is not None
            store.add_cert(crypto.X509.from_cryptography(trusted.certificate))
            context.set_verify(SSL.VERIFY_PEER)
        return context

    def feed(self, data: bytes) -> bytes:
        """Go on as far as it goes; an alert that comes is in `error` then."""
        if data:
            self.connection.bio_write(data)
        try:
            self.connection.do_handshake()
            self.done = True
            while True:
                self.received += self.connection.recv(65536)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.closed = True
        except SSL.Error as error:
            self.error = self.error or str(error.args[0][0][2]).lower()
        return self.flight()

    def flight(self) -> bytes:
        try:
            return self.connection.bio_read(1 << 20)
        except SSL.WantReadError:
            return b""

    def seal(self, data: bytes) -> bytes:
        self.connection.sendall(data)
        return self.flight()

    def tls12_secrets(self) -> tuple[bytes, bytes, bytes]:
        """The master secret, the client's and the server's random."""
        connection = self.connection
        master, client = connection.master_key(), connection.client_random()
        server = connection.server_random()
        assert master is not None
        assert client is not None
        assert server is not None
        return master, client, server


def shake_hands(client: Client, server: SSL.Connection) -> tuple[bytes, bytes]:
    """Let two OpenSSLs do a handshake; give all bytes of the client and of the server."""
    server.set_accept_state()
    from_client = from_server = b""
    flight = client.feed(b"")
    while flight:
        from_client += flight
        server.bio_write(flight)
        with suppress(SSL.WantReadError):
            server.do_handshake()
        answer = b""
        with suppress(SSL.WantReadError):
            answer = server.bio_read(1 << 20)
        from_server += answer
        flight = client.feed(answer) if answer else b""
    return from_client, from_server


def connect(
    engine: OpenSSLEngine, client: Client, *, data: bytes = b"", step: int = 1 << 20
) -> tuple[OpenSSLHandshake, HandshakeError | None]:
    """Do a handshake of a server engine with a client, feeding `step` bytes at a time.

    `data` goes in the client's last flight, behind its Finished. The error, if there is one, has
    been answered by the client, which has read its output.
    """
    handshake = engine.start("192.0.2.7", 5555)
    flight = client.feed(b"")
    while flight:
        if client.done and data:
            flight, data = flight + client.seal(data), b""
        output = b""
        try:
            for start in range(0, len(flight), step):
                output += handshake.feed(flight[start : start + step])
        except HandshakeError as error:
            client.feed(output + error.output)
            return handshake, error
        flight = client.feed(output) if output else b""
    return handshake, None


def established(engine: OpenSSLEngine, client: Client, **how: object) -> Session:
    """Do a handshake that has to work, and give the server's session."""
    handshake, error = connect(engine, client, **how)  # type: ignore[arg-type]  # same keywords
    assert error is None, error
    assert handshake.done
    return handshake.session()


def refusal(engine: OpenSSLEngine, client: Client, **how: object) -> HandshakeError:
    """Do a handshake that has to fail, and give the error."""
    _, error = connect(engine, client, **how)  # type: ignore[arg-type]  # same keywords
    assert error is not None
    return error
