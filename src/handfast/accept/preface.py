"""What a connection brings before its handshake: who it is, and whether the TLS is ours.

A PROXY header comes first, where the listener takes one from this network. Then the hello is
looked at, where a route passes clients through by the name that they ask for.
"""

from __future__ import annotations

from typing import Final

from handfast.config import Route
from handfast.errors import PeerError
from handfast.policy.routes import Routes
from handfast.tls.handshake import FirstMessage, HandshakeError, Outcome
from handfast.tls.hello import first_message, parse_client_hello
from handfast.transport.proxy_protocol import Header, parse

_LONGEST_NAME: Final = 255
"""Bytes of a host name at most (RFC 1035, section 2.3.4); OpenSSL takes no more either."""


class Preface:
    """Collects bytes until it is known what the connection is. `rest` is all behind the header.

    `header` is the PROXY header, when there was one; `route` the one that passes the client
    through, if any, and `name` is what it asked for.
    """

    __slots__ = ("_alpn", "_first", "_headed", "_routes", "header", "name", "rest", "route")

    def __init__(self, *, headed: bool, routes: Routes | None, alpn: tuple[str, ...]) -> None:
        self._headed = headed
        self._routes = routes
        self._alpn = alpn
        self.rest = bytearray()
        self._first = FirstMessage(self.rest, client=True)
        self.header: Header | None = None
        self.route: Route | None = None
        self.name = ""

    def feed(self, data: bytes) -> bool:
        """Take bytes; True when all is known. Raises HandshakeError for what can be nothing."""
        self.rest += data
        if self._headed and not self._take_header():
            return False
        if self._routes is None:
            return True
        if not self.rest or not self._first.whole():
            return False
        self._find(self._routes)
        return True

    def _take_header(self) -> bool:
        try:
            self.header = parse(bytes(self.rest))
        except PeerError as error:
            raise HandshakeError(
                error.reason, token="bad_proxy_header", outcome=Outcome.DENIED
            ) from None
        if self.header is None:
            return False
        del self.rest[: self.header.length]
        self._headed = False
        return True

    def _find(self, routes: Routes) -> None:
        try:
            hello = parse_client_hello(first_message(bytes(self.rest[: self._first.end])))
        except PeerError:
            return  # it is for no target; the handshake says what is wrong with it
        if len(hello.sni) > _LONGEST_NAME:
            return
        self.name = hello.sni.decode("ascii", "backslashreplace")
        # What would be negotiated here, if it came to that.
        protocol = next((each for each in self._alpn if each.encode() in hello.alpn), "")
        self.route = routes.find(self.name, protocol, passthrough=True)
