"""The handshake engine on pyOpenSSL, which brings its own OpenSSL with post-quantum groups.

Here are the contexts: what a listener offers and whom it trusts. `openssl_handshake` drives one
handshake and takes the session out of it.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from OpenSSL import SSL, crypto

from handfast.errors import ConfigError, HandfastBug
from handfast.tls.alerts import Alert
from handfast.tls.certificates import Credential
from handfast.tls.handshake import HandshakeError
from handfast.tls.openssl_handshake import (
    OpenSSLHandshake,
    keep_secret,
    keep_verification,
    reason_of,
)
from handfast.tls.session import Peer, Role

_TLS12_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"


class OpenSSLEngine:
    """Handshakes of one listener (or one target): context, certificates, ticket keys.

    A server has a `credential`; `trusted` are the anchors for its clients' certificates: roots,
    intermediates or pinned leaves. `require` refuses a client without one; without `require` a
    client may have none, but a bad one is refused all the same. Raises ConfigError when OpenSSL
    does not take the credential.
    """

    def __init__(
        self,
        credential: Credential | None,
        *,
        role: Role = Role.SERVER,
        trusted: tuple[x509.Certificate, ...] = (),
        require: bool = False,
        alpn: tuple[str, ...] = (),
    ) -> None:
        server = role is Role.SERVER
        self.role = role
        self._verifies = bool(trusted)
        method = SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD
        context = self._context = SSL.Context(method)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_cipher_list(_TLS12_CIPHERS)
        # Resumption is by tickets alone: no state that another acceptor would lack.
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_session_id(b"handfast")
        context.set_keylog_callback(keep_secret)
        self._use(credential)
        self._trust(trusted, require=require)
        self._offer(tuple(name.encode("ascii") for name in alpn))

    def _use(self, credential: Credential | None) -> None:
        if credential is None:
            return
        try:
            self._context.use_certificate(credential.chain[0])
            self._context.use_privatekey(credential.key)
            for certificate in credential.chain[1:]:
                self._context.add_extra_chain_cert(certificate)
        except SSL.Error as error:
            subject = credential.chain[0].subject.rfc4514_string()
            raise ConfigError(
                f"the certificate of {subject} is refused: {reason_of(error)}; "
                "RSA keys need 2048 bits or more, and signatures SHA-256 or better"
            ) from None

    def _trust(self, trusted: tuple[x509.Certificate, ...], *, require: bool) -> None:
        if not trusted:
            return
        store = self._context.get_cert_store()
        if store is None:
            raise HandfastBug("a context without a certificate store")
        for certificate in trusted:
            store.add_cert(crypto.X509.from_cryptography(certificate))
        # What is listed is trusted as it stands: an intermediate or a leaf needs no root.
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if require else 0)
        self._context.set_verify(mode, keep_verification)
        if self.role is Role.SERVER:
            for certificate in trusted:
                self._context.add_client_ca(certificate)

    def _offer(self, protocols: tuple[bytes, ...]) -> None:
        if not protocols:
            return
        if self.role is Role.CLIENT:
            self._context.set_alpn_protos(list(protocols))
            return

        def select(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
            for protocol in protocols:
                if protocol in offered:
                    return protocol
            raise HandshakeError(
                f"the client offers none of our ALPN protocols, but {b', '.join(offered)!r}",
                token="no_application_protocol",
                alert=Alert.NO_APPLICATION_PROTOCOL,
            )

        self._context.set_alpn_select_callback(select)

    def start(self, address: str, port: int, *, server_name: str = "") -> OpenSSLHandshake:
        """Begin a handshake; `server_name` is for the client role."""
        connection = SSL.Connection(self._context)
        if self.role is Role.SERVER:
            connection.set_accept_state()
        else:
            connection.set_connect_state()
            if server_name:
                connection.set_tlsext_host_name(server_name.encode("idna"))
        return OpenSSLHandshake(connection, self.role, Peer(address, port), self._verifies)
