"""The handshake engine on pyOpenSSL, which brings its own OpenSSL with post-quantum groups.

Here are the contexts: what a listener offers and whom it trusts. `openssl_handshake` drives one
handshake and takes the session out of it.

A listener has a context for each choice of certificates that its clients' names can lead to (see
`selection`). All are alike but for that. A handshake begins with the default one, whose keys seal
the session tickets whatever the name is, and goes over to another when the name is known.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from handfast.errors import ConfigError, HandfastBug
from handfast.tls.alerts import Alert
from handfast.tls.certificates import Credential, algorithms
from handfast.tls.handshake import HandshakeError
from handfast.tls.keys import SUITES, TLS12, TLS13
from handfast.tls.openssl_callbacks import keep_verification
from handfast.tls.openssl_handshake import (
    OpenSSLHandshake,
    Terms,
    reason_of,
)
from handfast.tls.openssl_library import keep_secrets
from handfast.tls.selection import Selection
from handfast.tls.session import Peer, Role

_TLS12_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_METHODS: Final = {Role.SERVER: SSL.TLS_SERVER_METHOD, Role.CLIENT: SSL.TLS_CLIENT_METHOD}


class OpenSSLEngine:
    """Handshakes of one listener (or one kind of target): contexts, certificates, ticket keys.

    A server has `credentials`, the first being the default; `trusted` are the anchors for its
    clients' certificates: roots, intermediates or pinned leaves. `require` refuses a client
    without one; without `require` a client may have none, but a bad one is refused all the same.
    `versions` are wire numbers; `suites` are names of the IANA registry, empty for all that
    handfast speaks. `post_quantum` refuses clients that offer no hybrid key exchange. Raises
    ConfigError when OpenSSL does not take a credential.
    """

    def __init__(
        self,
        credentials: Sequence[Credential] = (),
        *,
        role: Role = Role.SERVER,
        trusted: tuple[x509.Certificate, ...] = (),
        require: bool = False,
        alpn: tuple[str, ...] = (),
        versions: tuple[int, ...] = (TLS12, TLS13),
        suites: tuple[str, ...] = (),
        post_quantum: bool = False,
    ) -> None:
        self.role = role
        self._credentials = tuple(credentials)
        self._trusted = trusted
        self._require = require
        self._alpn = tuple(name.encode("ascii") for name in alpn)
        self._suites = suites
        self._versions = _versions(versions, suites, post_quantum=post_quantum)
        self._terms = Terms(role, bool(trusted), post_quantum, bool(alpn))
        selection = self._selection = Selection(self._credentials) if credentials else None
        choices = selection.choices() if selection else {()}
        self._contexts = {choice: self._make(choice) for choice in choices}
        self._context = self._contexts[selection.default if selection else ()]
        if selection and len(choices) > 1:
            self._context.set_tlsext_servername_callback(self._named)

    def _make(self, choice: tuple[int, ...]) -> SSL.Context:
        context = SSL.Context(_METHODS[self.role])
        context.set_min_proto_version(min(self._versions))
        context.set_max_proto_version(max(self._versions))
        context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        self._allow_suites(context)
        # Resumption is by tickets alone: no state that another acceptor would lack.
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_session_id(b"handfast")
        keep_secrets(context)
        for place in choice:
            _use(context, self._credentials[place])
        self._trust(context)
        self._offer(context)
        shown = tuple(algorithms(self._credentials[place].chain[0]) for place in choice)
        context.set_app_data(shown)
        return context

    def _allow_suites(self, context: SSL.Context) -> None:
        old = _openssl_names(self._suites, TLS12)
        new = _openssl_names(self._suites, TLS13)
        context.set_cipher_list(b":".join(old) or _TLS12_CIPHERS)
        if new:
            context.set_tls13_ciphersuites(b":".join(new))

    def _named(self, connection: SSL.Connection) -> None:
        """Go over to the context for the name that the client asks for."""
        if self._selection is None:
            raise HandfastBug("a server without certificates")
        name = (connection.get_servername() or b"").decode("ascii", "replace").lower()
        name = name.removesuffix(".")  # as routes do
        context = self._contexts[self._selection.choose(name)]
        if context is not self._context:
            connection.set_context(context)

    def _trust(self, context: SSL.Context) -> None:
        if not self._trusted:
            return
        store = context.get_cert_store()
        if store is None:
            raise HandfastBug("a context without a certificate store")
        for certificate in self._trusted:
            store.add_cert(crypto.X509.from_cryptography(certificate))
        # What is listed is trusted as it stands: an intermediate or a leaf needs no root.
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if self._require else 0)
        context.set_verify(mode, keep_verification)
        if self.role is Role.SERVER:
            for certificate in self._trusted:
                context.add_client_ca(certificate)

    def _offer(self, context: SSL.Context) -> None:
        protocols = self._alpn
        if not protocols:
            return
        if self.role is Role.CLIENT:
            context.set_alpn_protos(list(protocols))
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

        context.set_alpn_select_callback(select)

    def start(self, address: str, port: int, *, server_name: str = "") -> OpenSSLHandshake:
        """Begin a handshake; `server_name` is for the client role."""
        connection = SSL.Connection(self._context)
        if self.role is Role.SERVER:
            connection.set_accept_state()
        else:
            connection.set_connect_state()
            if server_name:
                connection.set_tlsext_host_name(server_name.encode("idna"))
        return OpenSSLHandshake(connection, self._terms, Peer(address, port))


def _versions(
    versions: tuple[int, ...], suites: tuple[str, ...], *, post_quantum: bool
) -> tuple[int, ...]:
    """Leave out the versions that no suite is for; hybrid key exchange is of TLS 1.3 alone."""
    having = {suite.version for suite in SUITES.values() if not suites or suite.name in suites}
    left = tuple(v for v in versions if v in having and (v == TLS13 or not post_quantum))
    if not left:
        raise ConfigError("no TLS version is left: the suites are all of another version")
    return left


def _openssl_names(names: tuple[str, ...], version: int) -> list[bytes]:
    """Give OpenSSL's names of the suites of a version, in the order of `names`."""
    suites = {suite.name: suite for suite in SUITES.values() if suite.version == version}
    return [suites[name].openssl_name.encode() for name in names if name in suites]


def _use(context: SSL.Context, credential: Credential) -> None:
    """Add a credential with a chain of its own, which OpenSSL takes from a file only."""
    descriptor = os.memfd_create("chain")
    try:
        os.write(descriptor, b"".join(each.public_bytes(Encoding.PEM) for each in credential.chain))
        context.use_certificate_chain_file(f"/proc/self/fd/{descriptor}")
        context.use_privatekey(credential.key)
    except SSL.Error as error:
        subject = credential.chain[0].subject.rfc4514_string()
        kind = "RSA" if isinstance(credential.key, rsa.RSAPrivateKey) else "ECDSA"
        raise ConfigError(
            f"the {kind} certificate of {subject} is refused: {reason_of(error)}; "
            "RSA keys need 2048 bits or more, and signatures SHA-256 or better"
        ) from None
    finally:
        os.close(descriptor)
