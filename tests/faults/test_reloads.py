"""Reload under load: no byte of a stream is lost, no client turned away, and nothing piles up."""

from __future__ import annotations

import select
import signal
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.homes import TIMEOUT
from harness.instance import wait_for
from harness.load import Churn, Streams, warm_up
from harness.pki import issue
from harness.processes import title
from harness.recorded import UNMEASURED, Recorded, certificates_yaml, configuration
from harness.streams import memory_client

if TYPE_CHECKING:
    from conftest import Certificates
    from faults.conftest import Begin
    from harness.backends import Backend

STREAMS = 10
RELOADS = 50
MANY = 60
NAMES = 30


def test_50_reloads_lose_no_byte_of_a_stream_and_no_client(
    begin: Begin, context: ssl.SSLContext
) -> None:
    running = begin(wrapper=UNMEASURED)
    port = running.port()
    baseline = running.footprint()

    with Streams(port, context, STREAMS) as streams, Churn(port, context) as churn:
        for _ in range(RELOADS):
            assert running.reload().error == ""
        streams.go_on()
        churn.go_on()
        streams.finish()
        assert streams.broken == {}

    assert churn.failures == []
    assert len(running.events("reload", outcome="ok")) == RELOADS
    running.check_footprint(baseline)
    check_generations(running)


def check_generations(running: Recorded) -> None:
    """Check that only the last generation lives, and that those before it ended well."""
    template = running.role("template")
    started = {each["worker_pid"] for each in running.events("worker", worker_state="spawned")}
    ended = running.events("worker", worker_state="dead")
    living = {str(each.pid) for each in running.footprint().processes.values()}
    assert started - {each["worker_pid"] for each in ended} == living - {str(running.pid)}
    assert not [each for each in ended if "error_msg" in each]
    assert title(template) == "handfast: template"


def test_a_handshake_in_progress_outlives_several_reloads(
    begin: Begin, certificates: Certificates
) -> None:
    running = begin()
    with memory_client(running.port(), certificates.ca, handshake=False) as client:
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        client.flush()
        assert select.select([client.sock], [], [], TIMEOUT)[0]  # the server has begun

        for _ in range(3):
            assert running.reload().error == ""

        client.handshake()
        client.write(b"still here")
        client.flush()
        assert client.read_exactly(10) == b"still here"


def test_reloads_that_are_refused_leave_everything_as_it_was(
    begin: Begin, context: ssl.SSLContext
) -> None:
    running = begin()
    port = running.port()
    sound = running.config.read_text()
    before = running.footprint()

    with Streams(port, context, 4) as streams, Churn(port, context) as churn:
        for wrong in (sound + "  nonsense: 1\n", sound.replace("chain: /", "chain: /missing/")):
            running.config.write_text(wrong)
            for _ in range(10):
                assert running.reload().wrong_configuration
        streams.finish()
        assert streams.broken == {}

    assert churn.failures == []
    running.check_footprint(before)
    after = running.footprint()
    assert {each.pid for each in after.processes.values()} == {
        each.pid for each in before.processes.values()
    }


def test_a_flood_of_sighup_makes_no_more_than_one_reload_after_the_one_at_hand(
    begin: Begin, context: ssl.SSLContext
) -> None:
    running = begin()
    baseline = running.footprint()

    with Churn(running.port(), context) as churn:
        for _ in range(200):
            running.process.send_signal(signal.SIGHUP)
        running.wait("reload", outcome="ok")
        churn.go_on()

    assert churn.failures == []
    running.check_footprint(baseline)


def test_memory_is_flat_over_many_reloads_with_many_certificates(
    certificates: Certificates, backend: Backend, context: ssl.SSLContext, tmp_path: Path
) -> None:
    names = [issue(f"name-{number}.test", certificates.intermediate) for number in range(NAMES)]
    more = certificates_yaml(names, tmp_path)
    yaml = configuration(backend.target, certificates.chain, certificates.key, listener=more)

    with Recorded(tmp_path, yaml, wrapper=UNMEASURED) as running:
        warm_up(running.port(), context)
        for _ in range(MANY):  # the first ones fill what the allocator keeps
            assert running.reload().error == ""
        baseline = running.footprint()
        for _ in range(MANY):
            assert running.reload().error == ""
        warm_up(running.port(), context)

        running.check_footprint(baseline, room=2 << 20)
        wait_for(lambda: running.status()["generation"] == 1 + 2 * MANY, "all are done")
