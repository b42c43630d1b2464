"""kill -9 of each process under load: what it carried ends with it, and nothing else is disturbed.

The load is a few streams with bytes under way at every moment, and clients that come and go.
"""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.backends import Backend
from harness.clients import trusting
from harness.instance import wait_for
from harness.load import Churn, Stream, Streams, warm_up
from harness.processes import Watched, kill_and_wait
from harness.recorded import Recorded, configuration

if TYPE_CHECKING:
    from conftest import Certificates

STREAMS = 6


@pytest.fixture(scope="module")
def running(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    directory = tmp_path_factory.mktemp("killed")
    with Backend() as backend:
        yaml = configuration(
            backend.named, certificates.chain, certificates.key, extra="metrics: 127.0.0.1:0"
        )
        with Recorded(directory, yaml) as running:
            warm_up(running.port(), trusting(certificates.ca))
            yield running


def carried_by(running: Recorded, name: str, streams: Streams) -> tuple[Stream, ...]:
    """Give the streams whose relay has this name."""
    ports = streams.ports
    return tuple(each for port, each in ports.items() if running.owner(port) == name)


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        ("template", ("template", "acceptor-1", "acceptor-2")),
        ("acceptor 1", ("acceptor-1",)),
        ("resolver", ("resolver",)),
        ("monitor", ("monitor",)),
    ],
)
def test_a_process_that_carries_no_stream_is_replaced_and_no_stream_notices(
    running: Recorded, context: ssl.SSLContext, name: str, replaced: tuple[str, ...]
) -> None:
    baseline = running.footprint()
    before = {each: spawned(running, each) for each in replaced}

    with Streams(running.port(), context, STREAMS) as streams:
        with Churn(running.port(), context) as churn:
            churn.go_on()
            kill_and_wait(running.role(name))
            for each in replaced:
                running.wait("worker", before[each] + 1, worker_state="spawned", worker_id=each)
            churn.go_on()
            streams.go_on()
        streams.finish()
        assert streams.broken == {}

    # A handshake in progress ends with its acceptor; nothing else may.
    assert len(churn.failures) <= 2, churn.failures
    if name in {"resolver", "monitor"}:
        assert churn.failures == []
    running.check_footprint(baseline)


def spawned(running: Recorded, name: str) -> int:
    """Count how often a process was started."""
    return len(running.events("worker", worker_state="spawned", worker_id=name))


def test_a_relay_takes_its_own_streams_along_and_no_others(
    running: Recorded, context: ssl.SSLContext
) -> None:
    baseline = running.footprint()
    before = spawned(running, "relay-1")

    with Streams(running.port(), context, STREAMS) as streams:
        lost = carried_by(running, "relay-1", streams)
        with Churn(running.port(), context) as churn:
            churn.go_on()
            kill_and_wait(running.role("relay 1"))
            running.wait("worker", before + 1, worker_state="spawned", worker_id="relay-1")
            streams.go_on(but=lost)
            churn.go_on()
        streams.finish()
        assert 0 < len(lost) < STREAMS
        assert set(streams.broken) == {each.port for each in lost}

    assert len(churn.failures) <= 2, churn.failures  # those that it carried at that moment
    running.check_footprint(baseline)


def test_everything_ends_with_the_supervisor(
    certificates: Certificates, backend: Backend, context: ssl.SSLContext, tmp_path: Path
) -> None:
    yaml = configuration(
        backend.target, certificates.chain, certificates.key, extra="metrics: 127.0.0.1:0"
    )
    running = Recorded(tmp_path, yaml)
    running.wait("listening")
    port = running.port()
    family = running.footprint()

    with Streams(port, context, STREAMS) as streams, Churn(port, context) as churn:
        churn.go_on()
        watched = Watched(*(each.pid for each in family.processes.values()))
        running.process.send_signal(signal.SIGKILL)
        watched.wait()
        wait_for(lambda: len(streams.broken) == STREAMS, "every stream ends")

    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port))
    running.kill()
