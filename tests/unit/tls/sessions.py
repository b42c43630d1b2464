"""Both ends of made-up sessions, and a record maker that shares no code with the record layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from handfast.tls.export import export
from handfast.tls.keys import SUITES, TLS12, TLS13, Suite, next_secret, traffic_key
from handfast.tls.reader import RecordReader
from handfast.tls.session import Direction, Peer, Role, Session, decode, encode
from handfast.tls.writer import RecordWriter, room_for

AES128 = SUITES[0x1301]
CHACHA = SUITES[0x1303]
AES128_12 = SUITES[0xC02F]
CHACHA_12 = SUITES[0xCCA8]
SUITES_13 = [suite for suite in SUITES.values() if suite.version == TLS13]
SUITES_12 = [suite for suite in SUITES.values() if suite.version == TLS12]

every_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
every_suite_13 = pytest.mark.parametrize("suite", SUITES_13, ids=lambda suite: suite.name)
every_suite_12 = pytest.mark.parametrize("suite", SUITES_12, ids=lambda suite: suite.name)
either_version = pytest.mark.parametrize("suite", [AES128, AES128_12], ids=["1.3", "1.2"])

CCS, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23


def secret(suite: Suite, fill: int) -> bytes:
    """A secret of the length that the suite takes; `fill` tells one from another."""
    length = suite.hash_length
    if suite.version == TLS12:
        length = suite.key_length + suite.fixed_iv
    return bytes((fill + i) % 256 for i in range(length))


def direction(suite: Suite, fill: int, *, sequence: int = 0, nonce: int = 0) -> Direction:
    return Direction(bytearray(secret(suite, fill)), sequence, nonce)


def sessions(
    suite: Suite, *, sequence: int = 0, nonce: int = 0, unread: bytes = b""
) -> tuple[Session, Session]:
    """The server's end and the client's end of one session."""
    client = direction(suite, 1, sequence=sequence, nonce=nonce)
    server = direction(suite, 101, sequence=sequence, nonce=nonce)
    peer = Peer("192.0.2.1", 4433)
    return (
        Session(Role.SERVER, suite.code, client, server, peer, unread),
        Session(Role.CLIENT, suite.code, server, client, peer, unread),
    )


class End:
    """A live session, driven by bytes as a relay drives it with sockets."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.reader = RecordReader(session)
        self.writer = RecordWriter(session)

    def open(self, data: bytes) -> bytes:
        buffer = memoryview(bytearray(len(self.reader.unread) + len(data)))
        kept = self.reader.restore(buffer)
        buffer[kept:] = data
        out = memoryview(bytearray(len(buffer)))
        return bytes(out[: self.reader.open(buffer, len(buffer), out)])

    def seal(self, data: bytes) -> bytes:
        out = memoryview(bytearray(room_for(len(data))))
        return bytes(out[: self.writer.seal(memoryview(bytearray(data + b"?")), len(data), out)])

    def answer(self) -> bytes:
        """Seal what the peer is owed, if anything."""
        if not self.reader.update_requested:
            return b""
        self.reader.update_requested = False
        return self.writer.key_update(request=False)

    def export(self) -> Session:
        return export(self.reader, self.writer, self.session.peer)

    def handed_over(self) -> End:
        """The same end in another process."""
        return End(decode(encode(self.export())))


def ends(suite: Suite, *, sequence: int = 0, nonce: int = 0) -> tuple[End, End]:
    """A server and its client."""
    server, client = sessions(suite, sequence=sequence, nonce=nonce)
    return End(server), End(client)


class Peering:
    """Makes any record that a peer could make: of any type, padded, empty, too long."""

    def __init__(self, suite: Suite, keys: Direction) -> None:
        self.suite = suite
        self.secret = keys.secret
        self.sequence = keys.sequence
        self.nonce = keys.nonce

    def record(self, kind: int, body: bytes, *, padding: int = 0) -> bytes:
        if self.suite.version == TLS13:
            return self.inner(body + bytes((kind,)) + bytes(padding))
        key, iv = traffic_key(self.suite, self.secret)
        number = self.sequence.to_bytes(8, "big")
        explicit = self.nonce.to_bytes(8, "big") if len(iv) == 4 else b""
        nonce = iv + explicit if explicit else _xor(bytes(iv), self.sequence)
        aad = number + bytes((kind, 3, 3)) + len(body).to_bytes(2, "big")
        sealed = explicit + self.suite.aead(key).encrypt(nonce, body, aad)
        self.sequence += 1
        self.nonce += 1
        return bytes((kind, 3, 3)) + len(sealed).to_bytes(2, "big") + sealed

    def inner(self, text: bytes) -> bytes:
        """A TLS 1.3 record of this inner plaintext, content type and padding included."""
        key, iv = traffic_key(self.suite, self.secret)
        header = b"\x17\x03\x03" + (len(text) + 16).to_bytes(2, "big")
        sealed = self.suite.aead(key).encrypt(_xor(bytes(iv), self.sequence), text, header)
        self.sequence += 1
        return header + sealed

    def rekey(self) -> None:
        self.secret = next_secret(self.suite, self.secret)
        self.sequence = 0

    def key_update(self, request: int = 0) -> bytes:
        record = self.record(HANDSHAKE, key_update(request))
        self.rekey()
        return record


def server_and_peer(suite: Suite) -> tuple[End, Peering]:
    """A server's end, and what makes the records of its client."""
    session, _ = sessions(suite)
    return End(session), Peering(suite, session.read)


def client_and_peer(suite: Suite) -> tuple[End, Peering]:
    """A client's end, and what makes the records of its server."""
    _, session = sessions(suite)
    return End(session), Peering(suite, session.read)


def key_update(request: int = 0) -> bytes:
    return bytes((24, 0, 0, 1, request))


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut `data`, using the sizes in turn, again and again."""
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        yield data[position : position + size]
        position += size
        turn += 1


def stream(length: int) -> bytes:
    """Bytes in which every place looks different from its neighbourhood."""
    return b"".join(i.to_bytes(4, "big") for i in range(length // 4 + 1))[:length]


def _xor(iv: bytes, number: int) -> bytes:
    return (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
