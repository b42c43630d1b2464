"""What the relay carries: in order, in any pieces, in any amount, at any pace."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from harness.backends import Backend
from harness.homes import TIMEOUT, sized
from harness.streams import Exchange, memory_client, random_bytes, sha256
from harness.target import accepted, receive_from, silent_target, target_of

if TYPE_CHECKING:
    from conftest import Certificates, Serve
    from harness.instance import Instance

VERSIONS: Final = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
HUNDRED_MEGABYTES: Final = sized(100_000_000)
QUIET: Final = 0.3
"""Seconds without room to write after which a side counts as blocked."""
GROWTH: Final = 10_000
"""KB, for 40 MB that wait to be carried. handfast holds one batch; code that runs for the first
time, and the measuring of coverage, take the rest."""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_target_that_speaks_first_is_heard_before_the_client_speaks(
    serve: Serve, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"220 ready\r\n")
        connection.sendall(connection.recv(100).upper())

    with Backend(greet) as backend:
        handfast = serve(backend.target)
        with memory_client(handfast.port(), certificates.ca, version) as client:
            assert client.read_exactly(11) == b"220 ready\r\n"
            client.write(b"quit")
            client.flush()
            assert client.read_exactly(4) == b"QUIT"


@pytest.mark.parametrize("count", [1, 100_000])
def test_finished_and_data_in_one_segment_are_both_used(
    serve: Serve, backend: Backend, certificates: Certificates, count: int
) -> None:
    handfast = serve(backend.target)
    data = random_bytes(count)
    with memory_client(handfast.port(), certificates.ca, handshake=False) as client:
        client.handshake(flush=False)
        client.write(data)
        client.flush()

        assert client.read_exactly(count) == data


def test_finished_data_and_close_notify_in_one_segment_are_all_used(
    serve: Serve, backend: Backend, certificates: Certificates
) -> None:
    handfast = serve(backend.target)
    with memory_client(handfast.port(), certificates.ca, handshake=False) as client:
        client.handshake(flush=False)
        client.write(b"all in one")
        client.close_write()

        assert client.read_exactly(100) == b"all in one"
    end = handfast.wait("proxy", subevent="client_disconnect")
    assert "error_msg" not in end


@pytest.mark.parametrize("version", VERSIONS)
def test_records_of_one_byte_arrive_in_order(
    serve: Serve, backend: Backend, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    handfast = serve(backend.target)
    data = random_bytes(2000)
    with memory_client(handfast.port(), certificates.ca, version) as client:
        for position in range(len(data)):
            client.write(data[position : position + 1])
            client.flush()

        assert client.read_exactly(len(data)) == data


def test_records_sent_byte_by_byte_are_put_together(
    serve: Serve, backend: Backend, certificates: Certificates
) -> None:
    handfast = serve(backend.target)
    with memory_client(handfast.port(), certificates.ca) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.write(b"first")
        client.write(b"second")
        for byte in client.take():
            client.sock.sendall(bytes((byte,)))

        assert client.read_exactly(11) == b"firstsecond"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_hundred_megabytes_each_way_at_once_arrive_intact(
    serve: Serve, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    data = random_bytes(HUNDRED_MEGABYTES)
    exchange = Exchange(len(data), data)
    with Backend(exchange) as backend:
        handfast = serve(backend.target)
        with memory_client(handfast.port(), certificates.ca, version) as client:
            received = client.exchange(data, len(data))
            assert client.read() == b""
            client.close_write()
        end = handfast.wait("proxy", subevent="client_disconnect")

    assert received == sha256(data)
    assert exchange.received == [received]
    assert (end["bytes_in"], end["bytes_out"]) == (str(len(data)), str(len(data)))


def resident(handfast: Instance) -> int:
    """Give the memory of the relays, in kB."""
    status = [Path(f"/proc/{pid}/status").read_text() for pid in handfast.pids("relay").values()]
    return sum(int(text.partition("VmRSS:")[2].split()[0]) for text in status)


def fill(sock: socket.socket, data: memoryview) -> int:
    """Write until the socket takes no more for a while; give how much it took."""
    sock.setblocking(False)
    sent = 0
    while sent < len(data) and select.select([], [sock], [], QUIET)[1]:
        sent += sock.send(data[sent:])
    sock.settimeout(TIMEOUT)
    return sent


def test_a_target_that_does_not_read_stops_the_client_and_costs_no_memory(
    serve: Serve, certificates: Certificates
) -> None:
    data = random_bytes(40_000_000)
    with silent_target() as listening:
        handfast = serve(target_of(listening), nworkers=1)
        with (
            memory_client(handfast.port(), certificates.ca) as client,
            accepted(listening) as target,
        ):
            for position in range(0, len(data), 1 << 16):
                client.write(data[position : position + (1 << 16)])
            sealed = memoryview(client.take())
            before = resident(handfast)
            sent = fill(client.sock, sealed)
            grown = resident(handfast) - before
            stalled = sent < len(sealed)
            rest = threading.Thread(target=client.sock.sendall, args=(sealed[sent:],))
            rest.start()
            received = receive_from(target, len(data))
            rest.join(TIMEOUT)

    assert stalled
    assert grown < GROWTH
    assert sha256(received) == sha256(data)


def test_a_client_that_does_not_read_stops_the_target_and_costs_no_memory(
    serve: Serve, certificates: Certificates
) -> None:
    data = random_bytes(40_000_000)
    with silent_target() as listening:
        handfast = serve(target_of(listening), nworkers=1)
        with (
            memory_client(handfast.port(), certificates.ca) as client,
            accepted(listening) as target,
        ):
            before = resident(handfast)
            sent = fill(target, memoryview(data))
            grown = resident(handfast) - before
            stalled = sent < len(data)
            rest = threading.Thread(target=target.sendall, args=(memoryview(data)[sent:],))
            rest.start()
            received = client.exchange(b"", len(data))
            rest.join(TIMEOUT)

    assert stalled
    assert grown < GROWTH
    assert received == sha256(data)


def test_a_stalled_direction_does_not_stop_the_other(
    serve: Serve, certificates: Certificates
) -> None:
    with silent_target() as listening:
        handfast = serve(target_of(listening), nworkers=1)
        with (
            memory_client(handfast.port(), certificates.ca) as client,
            accepted(listening) as target,
        ):
            client.write(random_bytes(20_000_000))
            sealed = memoryview(client.take())
            assert fill(client.sock, sealed) < len(sealed)
            target.sendall(b"still here")

            assert client.read_exactly(10) == b"still here"
