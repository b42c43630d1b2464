"""Crowds that want nothing good, and too few descriptors: real clients stay served, or wait."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

from harness.clients import connect, echoes, receive
from harness.load import Churn, Streams, crowd
from harness.scarcity import few_descriptors

if TYPE_CHECKING:
    from faults.conftest import Begin
    from harness.recorded import Recorded

CROWD = 500


def test_500_silent_and_500_garbage_clients_leave_real_ones_served(
    begin: Begin, context: ssl.SSLContext
) -> None:
    running = begin(extra="handshake-timeout: 3s")
    port = running.port()
    baseline = running.footprint()

    with Streams(port, context, 4) as streams, Churn(port, context) as churn:
        with crowd(port, CROWD), crowd(port, CROWD, lambda sock: sock.send(os.urandom(600))):
            churn.go_on()
            streams.go_on()
            running.wait("auth", CROWD, reason="timeout")
            churn.go_on()
            streams.go_on()
        streams.finish()
        assert streams.broken == {}

    assert churn.failures == []
    running.check_footprint(baseline)


def test_an_acceptor_without_descriptors_pauses_and_recovers_while_streams_go_on(
    begin: Begin, context: ssl.SSLContext
) -> None:
    running = begin(nworkers=1)
    port = running.port()
    baseline = running.footprint()

    with Streams(port, context, 4) as streams:
        with few_descriptors(running.role("acceptor 1"), 10):
            with crowd(port, 30):
                running.wait("accepting", state="paused", worker_id="acceptor-1")
                streams.go_on()
            running.wait("accepting", state="resumed", worker_id="acceptor-1")
            with connect(port, context) as client:
                assert echoes(client)
        streams.finish()
        assert streams.broken == {}

    running.check_footprint(baseline)


def test_a_relay_near_its_limit_of_descriptors_pauses_and_loses_nobody(
    begin: Begin, context: ssl.SSLContext
) -> None:
    running = begin(nworkers=1, wrapper=("prlimit", "--nofile=64:64"))

    exhaust_and_recover(running, context)

    assert not running.events("system_error")


def test_a_relay_whose_limit_was_lowered_meanwhile_pauses_and_recovers(
    begin: Begin, context: ssl.SSLContext
) -> None:
    running = begin(nworkers=1)

    with few_descriptors(running.role("relay 1"), 24):
        exhaust_and_recover(running, context)


def exhaust_and_recover(running: Recorded, context: ssl.SSLContext) -> None:
    """Have clients come until the relay pauses, then some who wait, and have the first go."""
    port = running.port()
    baseline = running.footprint()
    clients: list[ssl.SSLSocket] = []

    with Streams(port, context, 4) as streams:
        while not running.events("accepting", state="paused", worker_id="relay-1"):
            clients.append(connect(port, context))
            assert len(clients) < 64
        waiting = [connect(port, context) for _ in range(4)]
        for client in waiting:
            client.sendall(b"patience")
        streams.go_on()

        for client in clients:
            client.close()
        for client in waiting:
            assert receive(client, 8) == b"patience"
            client.close()
        running.wait("accepting", state="resumed", worker_id="relay-1")
        streams.finish()
        assert streams.broken == {}

    # It was not the target's fault.
    assert not running.events("target", state="down")
    running.check_footprint(baseline)
