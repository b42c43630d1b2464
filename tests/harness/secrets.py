"""The secrets of a session, as its client knows them."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from OpenSSL import SSL

from handfast.tls.keys import SUITES, TLS13, tls12_secrets, traffic_key


@dataclass(frozen=True)
class Secrets:
    """The traffic secrets of both directions, and the keys that they give."""

    secrets: tuple[bytes, ...]
    keys: tuple[bytes, ...]


def connect_and_tell(sock: socket.socket, version: str) -> tuple[SSL.Connection, Secrets]:
    """Shake hands over a connected socket that blocks, in one version of TLS (`1.2`, `1.3`)."""
    lines: list[bytes] = []
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_keylog_callback(lambda _, line: lines.append(line))
    number = SSL.TLS1_3_VERSION if version == "1.3" else SSL.TLS1_2_VERSION
    context.set_min_proto_version(number)
    context.set_max_proto_version(number)
    client = SSL.Connection(context, sock)
    client.set_connect_state()
    client.do_handshake()
    name = client.get_cipher_name()
    suite = next(each for each in SUITES.values() if each.openssl_name == name)
    secrets: tuple[bytes, ...]
    if suite.version == TLS13:
        told = (line.split() for line in lines if b"TRAFFIC_SECRET_0" in line)
        secrets = tuple(bytes.fromhex(words[2].decode()) for words in told)
    else:
        master = client.master_key()
        ours, theirs = client.client_random(), client.server_random()
        assert master
        assert ours
        assert theirs
        secrets = tls12_secrets(suite, master, ours, theirs)
    assert len(secrets) == 2
    return client, Secrets(secrets, tuple(bytes(traffic_key(suite, each)[0]) for each in secrets))
