"""One handshake on pyOpenSSL, and how the session is taken out of it.

Theory. OpenSSL does the handshake between two memory buffers and is asked, by the key log, for
the traffic secrets; then its connection object is thrown away. What it cannot be asked for is
read off the records it emits:

- TLS 1.3: a server seals its session tickets under the application key before the handshake
  call returns. The records of that last output are the first sequence number.
- TLS 1.2: the Finished record is the first under the keys; its explicit nonce, plus one, is the
  next one to use.
- An alert that OpenSSL sealed when it gave up on a client certificate is under the application
  key, sequence number 0. It is opened again, so that the log names the alert on the wire.

Records are fed one at a time: the peer's Finished and its first data often share a segment, and
OpenSSL must not swallow the data. A ChangeCipherSpec goes together with the record behind it
(it never ends a handshake), and so do the fragments of a first message, for each call costs us
10 us whatever it brings.

One handshake is driven at a time, so what OpenSSL tells by its callbacks belongs to it (see
`openssl_callbacks`).
"""

from __future__ import annotations

from binascii import unhexlify
from contextlib import suppress
from typing import Final, NoReturn

import msgspec
from cryptography.exceptions import InvalidTag
from OpenSSL import SSL

from handfast.errors import HandfastBug, PeerError
from handfast.tls.alerts import Alert, plaintext_alert
from handfast.tls.certificates import algorithms
from handfast.tls.handshake import (
    MAX_HANDSHAKE,
    FirstMessage,
    HandshakeError,
    Outcome,
    record_end,
)
from handfast.tls.hello import first_message, parse_client_hello, parse_server_hello
from handfast.tls.keys import IV_LENGTH, SUITES, TLS12, Suite, tls12_secrets, traffic_key
from handfast.tls.openssl_callbacks import encoded, refused
from handfast.tls.openssl_library import SECRET_LABELS, drive, secret_lines, take_output
from handfast.tls.record import ALERT, CHANGE_CIPHER_SPEC, HANDSHAKE
from handfast.tls.session import Consumed, Direction, Peer, Role, Session

_BY_OPENSSL_NAME: Final = {suite.openssl_name: suite for suite in SUITES.values()}

# One word for every offer of old versions alone, however OpenSSL found that out.
_TOKENS: Final = {
    "version too low": "unsupported_protocol",
    "closed during the handshake": "eof",
}

# draft-ietf-tls-ecdhe-mlkem: the one hybrid group that OpenSSL offers by itself, and prefers.
_X25519MLKEM768: Final = 0x11EC


class Terms(msgspec.Struct, frozen=True):
    """What an engine's handshakes have in common, beside their contexts."""

    role: Role
    verifies: bool
    post_quantum: bool
    alpn: bool


class OpenSSLHandshake:
    """One handshake in progress: see `handshake.Handshake`."""

    __slots__ = (
        "_connection",
        "_explicit_nonce",
        "_first",
        "_last_output",
        "_pending",
        "_received",
        "_resumed_12",
        "_secrets",
        "_terms",
        "_who",
        "done",
        "hello",
    )

    def __init__(self, connection: SSL.Connection, terms: Terms, who: Peer) -> None:
        self._connection: SSL.Connection | None = connection
        self._terms = terms
        self._who = who
        self._pending = bytearray()  # grows in place: a peer may send a byte at a time
        self._first = FirstMessage(self._pending, client=terms.role is Role.SERVER)
        self._received = 0
        self._secrets: list[bytes] = []
        self._last_output = b""
        self._explicit_nonce = 0
        self._resumed_12 = False
        self.hello = b""
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes that were read (none starts a client); give bytes to write."""
        if self._connection is None:
            raise Consumed
        if self.done:
            self._pending += data
            return b""
        try:
            return self._feed(data)
        except HandshakeError as error:
            if error.alert is not None and not error.output and not error.received:
                error.output = plaintext_alert(error.alert)
            self._connection = None
            raise

    def _feed(self, data: bytes) -> bytes:
        self._received += len(data)
        pending = self._pending
        pending += data
        output = b""
        if not self.hello:
            if self._terms.role is Role.CLIENT and not data:
                return self._drive(b"")
            if not pending or not self._first_is_whole():
                return b""
            del pending[: self._first.end]
            output = self._drive(self.hello)
        while pending and not self.done:
            end = self._next_end()
            if not end:
                break
            records = bytes(pending[:end])
            del pending[:end]
            output += self._drive(records)
        if not self.done and self._received > MAX_HANDSHAKE:
            raise HandshakeError(
                f"handshake of more than {MAX_HANDSHAKE} bytes",
                token="handshake_too_long",
                alert=Alert.DECODE_ERROR,
            )
        return output

    def _first_is_whole(self) -> bool:
        """Tell whether the peer's first message is there, and one to go on with."""
        first = self._first
        if not first.whole():
            return False
        self.hello = bytes(self._pending[: first.end])
        if self._terms.post_quantum and self._terms.role is Role.SERVER:
            self._check_groups()
        return True

    def _check_groups(self) -> None:
        """Refuse a client without hybrid key exchange before any is computed."""
        try:
            groups = parse_client_hello(first_message(self.hello)).groups
        except PeerError:
            groups = ()  # OpenSSL may read it all the same, and must not get to
        if _X25519MLKEM768 not in groups:
            raise HandshakeError(
                "the client does not offer X25519MLKEM768",
                token="no_post_quantum",
                alert=Alert.INSUFFICIENT_SECURITY,
            )

    def _next_end(self) -> int:
        """Give the end of the first record, with a ChangeCipherSpec of the one behind it too."""
        pending = self._pending
        end = record_end(pending, 0)
        if end and end < len(pending) and pending[0] == CHANGE_CIPHER_SPEC:
            end = record_end(pending, end)
        return end if end <= len(pending) else 0

    def _drive(self, records: bytes) -> bytes:
        connection = self._connection
        if connection is None:
            raise Consumed
        secret_lines.clear()
        refused.clear()
        try:
            self.done = drive(connection, records)
        except HandshakeError as error:
            error.output = take_output(connection)
            raise
        except SSL.Error as error:
            self._give_up(connection, error)
        self._secrets += secret_lines
        output = self._last_output = take_output(connection)
        if output and connection.get_protocol_version() == TLS12:
            self._scan_12(output)
        return output

    def _scan_12(self, output: bytes) -> None:
        """Find the explicit nonce of our Finished, which follows our ChangeCipherSpec."""
        position = 0
        keyed = False
        while position < len(output):
            start = position + 5
            if keyed and output[position] == HANDSHAKE:
                self._explicit_nonce = int.from_bytes(output[start : start + 8], "big")
            keyed = keyed or output[position] == CHANGE_CIPHER_SPEC
            position = start + int.from_bytes(output[position + 3 : start], "big")
        # An abbreviated handshake is the one in which the server's Finished comes first.
        self._resumed_12 = keyed and self.done == (self._terms.role is Role.CLIENT)

    def _give_up(self, connection: SSL.Connection, error: SSL.Error) -> NoReturn:
        self._secrets += secret_lines
        output = take_output(connection)
        verification, leaf = refused[-1] if refused else ("", b"")
        # The cause of a forged certificate is deep in OpenSSL, and its name says nothing of that.
        cause = reason = "certificate verify failed" if verification else reason_of(error)
        if isinstance(error, SSL.ZeroReturnError):
            cause = reason = "closed during the handshake"
        received = " alert " in f" {reason} "
        gave_up = received or isinstance(error, SSL.ZeroReturnError)
        about_certificate = "certificate" in reason and not received
        if about_certificate and verification:
            reason = f"{reason}: {verification}"
        raise HandshakeError(
            reason,
            token=_TOKENS.get(cause) or cause.replace(" ", "_").replace("/", "_"),
            alert=_received_alert(reason) if received else self._sent_alert(output),
            output=output,
            outcome=Outcome.FAILED if gave_up or "internal" in reason else Outcome.DENIED,
            received=received,
            about_certificate=about_certificate,
            certificates=(leaf,) if leaf else (),
        ) from None

    def _sent_alert(self, output: bytes) -> int | None:
        if len(output) == 7 and output[0] == ALERT:
            return output[6]
        secret = self._secret(server=self._terms.role is Role.SERVER)
        suite = self._suite()
        if len(output) < 5 + 3 + 16 or suite is None or not secret:
            return None
        key, iv = traffic_key(suite, secret)
        # Of an output with several records the alert is the last: 2 bytes, its type, the tag.
        record = output[-24:]
        try:
            opened = suite.aead(key).decrypt(iv[:IV_LENGTH], record[5:], record[:5])
        except InvalidTag:
            return None
        return opened[1]

    def _suite(self) -> Suite | None:
        name = self._connection.get_cipher_name() if self._connection else None
        return _BY_OPENSSL_NAME.get(name or "")

    def _secret(self, *, server: bool) -> bytes:
        label = SECRET_LABELS[server]
        for line in self._secrets:
            if line.startswith(label):
                return unhexlify(line[line.rindex(b" ") + 1 :])
        return b""

    def chain(self) -> tuple[bytes, ...]:
        """Give the certificates that the peer sent, DER, leaf first, whether verified or not."""
        sent = self._connection.get_peer_cert_chain() if self._connection else None
        return tuple(encoded(certificate) for certificate in sent or ())

    def session(self) -> Session:
        """Give the session of a handshake that is done; only once."""
        connection, suite = self._connection, self._suite()
        if connection is None:
            raise Consumed
        if not self.done or suite is None:
            raise HandfastBug("the handshake is not done")
        tickets = self._tickets(suite)
        read, write = self._directions(connection, suite, tickets)
        if self._terms.role is not Role.SERVER:
            read, write = write, read
        self._connection = None
        self._secrets = []
        return Session(
            self._terms.role,
            suite.code,
            read,
            write,
            self._peer(connection, suite, tickets),
            bytes(self._pending),
        )

    def _tickets(self, suite: Suite) -> int:
        """Count the session tickets that a server of TLS 1.3 has sent: the records of its last."""
        if suite.version == TLS12 or self._terms.role is not Role.SERVER:
            return 0
        return _count_records(self._last_output)

    def _directions(
        self, connection: SSL.Connection, suite: Suite, tickets: int
    ) -> tuple[Direction, Direction]:
        """Give the client's and the server's direction."""
        if suite.version == TLS12:
            client_random, server_random = connection.client_random(), connection.server_random()
            master = connection.master_key()
            if client_random is None or server_random is None or master is None:
                raise HandfastBug("OpenSSL kept no secrets of a finished handshake")
            client, server = tls12_secrets(suite, master, client_random, server_random)
            nonce = (self._explicit_nonce + 1) & 0xFFFFFFFFFFFFFFFF if suite.is_gcm else 0
            nonces = (0, nonce) if self._terms.role is Role.SERVER else (nonce, 0)
            return (
                Direction(bytearray(client), 1, nonces[0]),
                Direction(bytearray(server), 1, nonces[1]),
            )
        of_client, of_server = self._secret(server=False), self._secret(server=True)
        return Direction(bytearray(of_client)), Direction(bytearray(of_server), tickets)

    def _peer(self, connection: SSL.Connection, suite: Suite, tickets: int) -> Peer:
        alpn = connection.get_alpn_proto_negotiated() if self._terms.alpn else b""
        return Peer(
            self._who.address,
            self._who.port,
            self._server_name(connection).decode("ascii", "backslashreplace"),
            alpn.decode("ascii", "backslashreplace"),
            connection.get_group_name() or "",
            self._resumed(suite, tickets),
            self._certificates(connection) if self._terms.verifies else (),
            *_shown(connection),
        )

    def _server_name(self, connection: SSL.Connection) -> bytes:
        """Give the name that is asked for now; OpenSSL has that of a session of TLS 1.2 instead."""
        if self._resumed_12 and self._terms.role is Role.SERVER:
            with suppress(PeerError):
                return parse_client_hello(first_message(self.hello)).sni
        return connection.get_servername() or b""

    def _resumed(self, suite: Suite, tickets: int) -> bool:
        if suite.version == TLS12:
            return self._resumed_12
        # A ticket goes with every handshake, and OpenSSL sends two of them but for a resumption.
        if self._terms.role is Role.SERVER:
            return tickets == 1
        try:
            return parse_server_hello(first_message(self.hello)).resumed
        except PeerError:
            return False

    def _certificates(self, connection: SSL.Connection) -> tuple[bytes, ...]:
        chain = connection.get_verified_chain()
        if not chain:
            leaf = connection.get_peer_certificate()
            chain = [leaf] if leaf else []
        return tuple(encoded(certificate) for certificate in chain)


def _shown(connection: SSL.Connection) -> tuple[str, str]:
    """Name the algorithms of our own certificate; its context has at most one of each kind."""
    choice: tuple[tuple[str, str], ...] = connection.get_context().get_app_data()
    if len(choice) > 1:
        certificate = connection.get_certificate()
        if certificate is not None:
            return algorithms(certificate.to_cryptography())
    return choice[0] if choice else ("", "")


def _count_records(output: bytes) -> int:
    count = position = 0
    while position < len(output):
        position += 5 + int.from_bytes(output[position + 3 : position + 5], "big")
        count += 1
    return count


def reason_of(error: SSL.Error) -> str:
    """Give OpenSSL's reason in lower case: the first of its queue, which is the cause."""
    queue = error.args[0] if error.args else ()
    if isinstance(queue, list | tuple) and queue:
        return str(queue[0][2]).lower() or "unknown reason"
    return str(error.args[-1]).lower() if error.args else "unknown reason"


def _received_alert(reason: str) -> int | None:
    """Find the alert that OpenSSL's text names, as in `tlsv1 alert unknown ca`."""
    name = reason.rpartition("alert ")[2].upper().replace(" ", "_")
    aliases = {"CERTIFICATE_UNKNOWN": Alert.CERTIFICATE_UNKNOWN, "BAD_MAC": Alert.BAD_RECORD_MAC}
    return aliases.get(name) or Alert.__members__.get(name)
