"""RST in the middle of transfers: both sides of that connection end, and no other does."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from harness.backends import Backend
from harness.load import Churn, Streams, reset

if TYPE_CHECKING:
    from faults.conftest import Begin

BREAKING = 10
BEFORE_THE_RESET = 300_000


def resetting(connection: socket.socket) -> None:
    """Echo a while, then break the connection."""
    count = 0
    while count < BEFORE_THE_RESET and (data := connection.recv(65536)):
        connection.sendall(data)
        count += len(data)
    reset(connection)


def test_clients_that_reset_take_nobody_along(begin: Begin, context: ssl.SSLContext) -> None:
    running = begin()
    port = running.port()
    baseline = running.footprint()

    with Streams(port, context, 4) as streams, Churn(port, context) as churn:
        with Streams(port, context, BREAKING) as breaking:
            for each in breaking.each:
                each.crash()
        for number in breaking.ports:
            running.wait("proxy", subevent="client_disconnect", client_port=str(number))
        streams.go_on()
        churn.go_on()
        streams.finish()
        assert streams.broken == {}

    assert churn.failures == []
    for number in breaking.ports:
        told = running.events("proxy", subevent="client_disconnect", client_port=str(number))
        assert told[0]["error_msg"]
    running.check_footprint(baseline)


def test_targets_that_reset_take_only_their_clients_along(
    begin: Begin, context: ssl.SSLContext
) -> None:
    with Backend(resetting) as breaker:
        route = f"    routes:\n      - {{sni: [breaker.localhost], target: '{breaker.target}'}}\n"
        running = begin(listener=route)
        port = running.port()
        baseline = running.footprint()

        with Streams(port, context, 4) as streams, Churn(port, context) as churn:
            unnamed = ssl.create_default_context()
            unnamed.check_hostname = False
            unnamed.verify_mode = ssl.CERT_NONE
            broken = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(BREAKING)]
            for each in broken:
                with unnamed.wrap_socket(each, server_hostname="breaker.localhost") as client:
                    with pytest.raises(OSError, match=r".") as caught:  # noqa: PT012 - either call
                        while True:
                            client.sendall(bytes(16384))
                            if not client.recv(65536):
                                break
                    # An orderly end would have been taken for the whole.
                    assert not isinstance(caught.value, ssl.SSLZeroReturnError)
            streams.go_on()
            churn.go_on()
            streams.finish()
            assert streams.broken == {}

    assert churn.failures == []
    assert len(running.events("proxy", subevent="server_disconnect")) >= BREAKING
    running.check_footprint(baseline)
