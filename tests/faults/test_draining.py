"""SIGTERM under load: streams finish, newcomers are refused, and nothing is left."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

from harness.instance import wait_for
from harness.load import Churn, Streams
from harness.processes import Watched

if TYPE_CHECKING:
    from faults.conftest import Begin

STREAMS = 10


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_streams_finish_under_a_drain_and_then_every_process_ends(
    begin: Begin, context: ssl.SSLContext
) -> None:
    running = begin()
    port = running.port()
    watched = Watched(*(each.pid for each in running.footprint().processes.values()))

    with Streams(port, context, STREAMS) as streams, Churn(port, context) as churn:
        churn.go_on()
        running.terminate()
        running.wait("draining")
        wait_for(lambda: refused(port), "newcomers are refused")
        streams.go_on(50)
        churn.finish()
        assert running.process.poll() is None
        streams.finish()
        assert streams.broken == {}

    watched.wait()
    assert running.process.wait(10) == 0
    dead = running.events("worker", worker_state="dead")
    assert not [each for each in dead if "error_msg" in each]
    assert running.events()[-1]["event"] == "stopped"


def test_a_drain_whose_time_is_over_ends_streams_and_every_process(
    begin: Begin, context: ssl.SSLContext
) -> None:
    running = begin(extra="drain-timeout: 500ms")
    watched = Watched(*(each.pid for each in running.footprint().processes.values()))

    with Streams(running.port(), context, STREAMS) as streams:
        running.terminate()
        wait_for(lambda: len(streams.broken) == STREAMS, "every stream is ended")

    watched.wait()
    assert running.process.wait(10) == 0
