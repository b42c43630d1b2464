"""The wall clock jumps, as when a machine learns the time: only what is about dates notices."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from harness.clients import connect, echoes
from harness.load import Churn, Streams, visit, warm_up
from harness.recorded import Recorded, configuration
from harness.wallclock import WallClock

if TYPE_CHECKING:
    from conftest import Certificates
    from harness.backends import Backend

YEARS: Final = 10 * 365 * 86_400.0
HOURS: Final = 5 * 3600.0


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path / "clock")


@pytest.fixture
def running(
    certificates: Certificates, backend: Backend, tmp_path: Path, clock: WallClock
) -> Iterator[Recorded]:
    yaml = configuration(
        backend.target,
        certificates.chain,
        certificates.key,
        extra="idle-timeout: 1h\nhandshake-timeout: 10s",
        listener=f"    client-auth: {{mode: optional, trusted-certs: [{certificates.ca}]}}\n",
    )
    with Recorded(
        tmp_path, yaml, environment=clock.environment, module="harness.wallclock"
    ) as running:
        yield running


def logged_at(running: Recorded) -> datetime.datetime:
    """When the last line was written, by the clock of who wrote it."""
    return datetime.datetime.fromisoformat(running.events("auth")[-1]["timestamp"])


@pytest.mark.parametrize("seconds", [YEARS, -YEARS, HOURS, -HOURS])
def test_streams_clients_and_timers_do_not_notice_that_the_clock_jumps(
    running: Recorded, context: ssl.SSLContext, clock: WallClock, seconds: float
) -> None:
    port = running.port()
    warm_up(port, context)
    baseline = running.footprint()

    with Streams(port, context, 4) as streams, Churn(port, context) as churn:
        clock.jump(seconds)
        streams.go_on()
        churn.go_on()
        off = logged_at(running) - datetime.datetime.now(datetime.UTC)
        clock.jump(0)
        streams.go_on()
        churn.go_on()
        streams.finish()
        assert streams.broken == {}

    assert churn.failures == []
    assert abs(off.total_seconds() - seconds) < 60
    running.check_footprint(baseline)


def test_a_reload_in_the_future_warns_of_certificates_that_have_expired_and_serves_on(
    running: Recorded, context: ssl.SSLContext, clock: WallClock
) -> None:
    with Streams(running.port(), context, 4) as streams:
        clock.jump(YEARS)
        assert running.reload().error == ""
        visit(running.port(), context)
        streams.finish()
        assert streams.broken == {}

    running.wait("cert_loaded", level="WARN", cert_role="leaf")


def test_a_client_certificate_is_refused_while_the_clock_says_that_it_has_expired(
    running: Recorded,
    certificates: Certificates,
    context: ssl.SSLContext,
    clock: WallClock,
    tmp_path: Path,
) -> None:
    context.load_cert_chain(*certificates.client().write(tmp_path, "client"))
    visit(running.port(), context)

    with connect(running.port(), context) as established:
        assert echoes(established)
        clock.jump(YEARS)
        with pytest.raises(OSError, match=r".+"):
            visit(running.port(), context)
        refused = running.wait("auth", reason="certificate_expired")
        assert echoes(established)
        clock.jump(0)
        visit(running.port(), context)

    assert refused["outcome"] == "denied"
