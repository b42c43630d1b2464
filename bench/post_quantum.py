"""Connections whose key exchange is X25519MLKEM768, which Debian's programs do not speak.

The client is pyOpenSSL, which brings an OpenSSL with ML-KEM.
"""

from __future__ import annotations

from typing import Final

from OpenSSL import SSL

from bench.load import Client, LoadError

GROUP: Final = "X25519MLKEM768"


class GroupError(Exception):
    """The other side agreed on another key exchange."""


def connections(to: Client, count: int) -> float:
    """Make `count` connections, one after the other, with a request each; give how many."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    for _ in range(count):
        plain = to.connect_plain()
        plain.settimeout(None)
        connection = SSL.Connection(context, plain)
        try:
            connection.set_tlsext_host_name(to.name.encode())
            connection.set_connect_state()
            connection.do_handshake()
            group = connection.get_group_name()
            if group != GROUP:
                raise GroupError(f"no ML-KEM: agreed on {group}")
            connection.sendall(to.protocol.request)
            answer = b""
            while not to.protocol.complete(answer):
                answer += connection.recv(4096)
            connection.shutdown()
        except SSL.Error as error:
            raise LoadError(f"a post-quantum connection failed: {error!r}") from error
        finally:
            plain.close()
    return count
