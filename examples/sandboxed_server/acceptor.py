"""The acceptor: has the certificate and its key, shakes hands, and gives the connection away.

All that strangers can say to it are handshakes. When one is done it has nothing of the connection
any more: socket and session are the server's.
"""

from __future__ import annotations

import select
import socket
import time

import confinement
import reach
from handfast.handover import channel
from handfast.handover.message import Handover, Passthrough
from handfast.process.development import DevelopmentCertificate
from handfast.tls.certificates import Credential, check_key, parse_chain, parse_key
from handfast.tls.handshake import HandshakeError
from handfast.tls.openssl import OpenSSLEngine
from handfast.tls.session import Peer, Session
from line import Line
from memory import Memory
from scene import PATIENCE, Scene


def main(
    scene: Scene, line: Line, listener: socket.socket, sender: socket.socket, parent: int
) -> int:
    """Be the acceptor."""
    engine = load(scene.files)
    memory = Memory()
    confinement.enter("acceptor", scene.identity, parent)
    line.say(f"read the key; accepts on port {listener.getsockname()[1]}")
    waiting: list[Line | socket.socket] = [line, listener]
    while True:
        ready = select.select(waiting, [], [])[0]
        if line not in ready:
            welcome(line, listener, None if scene.clear else engine, sender)
        elif (order := line.hear()) is None:
            return 0
        else:
            line.tell(reach.explore(order, memory, sender))


def load(files: DevelopmentCertificate) -> OpenSSLEngine:
    """Read the certificate and its key: the one place that does."""
    chain = parse_chain(files.chain.read_bytes(), files.chain.name)
    key = parse_key(files.key.read_bytes(), None, files.key.name)
    check_key(chain[0], key, files.chain.name, files.key.name)
    return OpenSSLEngine([Credential(chain, key)])


def welcome(
    line: Line, listener: socket.socket, engine: OpenSSLEngine | None, sender: socket.socket
) -> None:
    """Accept one client and give it to the server; one that goes away is a line in the log.

    One at a time: whoever dawdles keeps the others waiting, for as long as `PATIENCE`.
    """
    started = time.monotonic()
    client, address = listener.accept()
    with client:
        try:
            session = establish(engine, client, Peer(*address), started + PATIENCE)
        except (HandshakeError, OSError) as error:
            line.say(f"lost a client: {error}")
            return
        if isinstance(session, Session):
            line.say(f"shook hands: {session.suite.name}")
        if not channel.send(sender, Handover(0, 0, started, session), client.fileno()):
            line.say("the server is busy: turned a client away")
            return
    if isinstance(session, Session):
        session.wipe()
    line.say("gave all of that client away")


def establish(
    engine: OpenSSLEngine | None, client: socket.socket, peer: Peer, deadline: float
) -> Session | Passthrough:
    """Give what the server has to know to speak with this client."""
    if engine is None:
        return Passthrough(peer, b"")
    try:
        return shake_hands(engine, client, peer, deadline)
    except HandshakeError as error:
        client.sendall(error.output)  # the alert
        raise


def shake_hands(
    engine: OpenSSLEngine, client: socket.socket, peer: Peer, deadline: float
) -> Session:
    """Carry bytes between the client and the TLS library, until there is a session."""
    handshake = engine.start(peer.address, peer.port)
    while not handshake.done:
        client.settimeout(max(0.001, deadline - time.monotonic()))
        data = client.recv(1 << 16)
        if not data:
            raise ConnectionError("it went away in the handshake")
        client.sendall(handshake.feed(data))
    return handshake.session()
