"""The server: has sessions and their sockets, and nothing else that is of use to anybody.

No key, no listening socket, no file, no way to connect anywhere, and a channel that can only be
read from. It learns a client's secret and proves that by a digest of it.
"""

from __future__ import annotations

import hashlib
import select
import socket
import time
from collections.abc import Callable
from typing import Final

import confinement
import reach
from handfast.errors import HandfastError, PeerError
from handfast.handover import channel
from handfast.tls.session import Session
from line import Line
from memory import Memory
from scene import PATIENCE, Scene
from stream import Bare, Sealed

_LONGEST: Final = 1 << 10


def main(scene: Scene, line: Line, receiver: socket.socket, parent: int) -> int:
    """Be the server."""
    memory = Memory()
    confinement.enter("server", scene.identity, parent)
    line.say("waits for sessions")
    sources: list[Line | socket.socket] = [line, receiver]
    conversations: list[Conversation] = []
    while True:
        limit = PATIENCE if conversations else None
        ready = select.select([*sources, *conversations], [], [], limit)[0]
        conversations = [one for one in conversations if one.goes_on(readable=one in ready)]
        if receiver in ready:
            try:
                conversations += take(line, receiver)
            except HandfastError:
                line.say("what came is no hand-over: takes no more")
                sources.remove(receiver)
        if line in ready:
            order = line.hear()
            if order is None:
                return 0
            line.tell(reach.explore(order, memory, receiver))


def take(line: Line, receiver: socket.socket) -> list[Conversation]:
    """Take a client from the channel, if there is one; raises HandfastError for anything else."""
    received = channel.receive(receiver)
    if received is None:
        return []
    handover, (descriptor, *_) = received
    session = handover.session
    line.say("has a session and its socket" if isinstance(session, Session) else "has a socket")
    stream = Sealed(session) if isinstance(session, Session) else Bare()
    conversation = Conversation(line, socket.socket(fileno=descriptor), stream)
    return [conversation] if conversation.begins() else []


class Conversation:
    """One client: it says its secret on a line, and is told the digest of it."""

    def __init__(self, line: Line, client: socket.socket, stream: Sealed | Bare) -> None:
        self._line = line
        self._client = client
        self._stream = stream
        self._said = b""
        self._until = time.monotonic() + 2 * PATIENCE
        client.settimeout(PATIENCE)

    def fileno(self) -> int:
        """Be something that `select` takes."""
        return self._client.fileno()

    def begins(self) -> bool:
        """Finish what the acceptor began; False when that was all there is."""
        return self._goes_on_after(self._begin)

    def goes_on(self, *, readable: bool) -> bool:
        """Read and answer, if there is something; False when the conversation is over."""
        return self._goes_on_after(self._read if readable else self._wait)

    def _goes_on_after(self, step: Callable[[], str]) -> bool:
        """Take a step, which gives the reason if it was the last; so does an error."""
        try:
            over = step()
        except PeerError as error:
            over = error.reason
            self._send_last(error.alert)
        except OSError as error:
            over = error.strerror or str(error)
        if over:
            self._line.say(over)
            self._client.close()
        return not over

    def _begin(self) -> str:
        """Write what the acceptor could not, and open what it had read too much."""
        self._client.sendall(self._stream.unsent)
        return self._listen(b"")

    def _wait(self) -> str:
        return "" if time.monotonic() < self._until else "the client took too long"

    def _read(self) -> str:
        data = self._client.recv(1 << 16)
        return self._listen(data) if data else "the client went away"

    def _listen(self, data: bytes) -> str:
        had_it = b"\n" in self._said
        self._said += self._stream.open(data)
        if b"\n" in self._said and not had_it:
            self._answer(self._said.partition(b"\n")[0])
        if self._stream.closed:
            self._client.sendall(self._stream.end())
            return "the client said goodbye"
        return "the client talks too much" if len(self._said) > _LONGEST else ""

    def _answer(self, secret: bytes) -> None:
        self._line.say(f"got the secret: {secret.decode(errors='replace')}")
        self._client.sendall(self._stream.seal(digest(secret) + b"\n"))

    def _send_last(self, alert: int | None) -> None:
        try:
            if alert is not None:
                self._client.send(self._stream.end(alert))
        except OSError:
            pass  # it is gone: there is nobody to tell


def digest(secret: bytes) -> bytes:
    """Prove that one knows a secret, without saying it."""
    return b"sha256 " + hashlib.sha256(secret).hexdigest()[:16].encode()
