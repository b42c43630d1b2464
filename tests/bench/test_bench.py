"""The benchmark itself: every scenario runs with the real peers, on the least that it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.figures import Results, load
from bench.systems import REPOSITORY

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="the peers are started as root, and leave it behind"
)


def bench(output: Path, *arguments: str) -> Results:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--amount", "smoke", "--output", str(output), *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return load(output)


@needs_root
@pytest.mark.timeout(400)
def test_every_scenario_gives_its_figures_for_handfast_and_for_nginx(tmp_path: Path) -> None:
    results = bench(tmp_path / "results.json", "--systems", "handfast,nginx")

    assert {row.scenario for row in results.rows} == {
        "new connection, ECDSA, full",
        "new connection, RSA-2048, full",
        "new connection, TLS 1.2, full",
        "new connection, ECDSA, resumed",
        "new connection, RSA-2048, resumed",
        "new connection, ML-KEM",
        "small request",
        "latency at a fixed rate",
        "bulk download",
        "bulk upload",
        "handshake flood",
        "idle connection",
        "reload under load",
        "upgrade with connections open",
        "start",
        "whole installation, two workers",
        "grow: connections",
        "grow: workers",
        "grow: certificates",
    }
    without = [row for row in results.rows if not row.rounds]
    assert {(row.system, row.scenario) for row in without} == {
        ("nginx", "new connection, ML-KEM"),
        ("nginx", "grow: certificates"),
    }
    assert all(row.why for row in without)
    for system in ("handfast", "nginx"):
        for figure in ("failed", "disturbed"):
            row = results.row(("reload under load", figure, None), system)
            assert row is not None
            assert row.rounds == [0]
        kept = results.row(("upgrade with connections open", "kept", 50), system)
        assert kept is not None
        assert kept.rounds == [1]


@needs_root
def test_every_peer_is_started_and_measured(tmp_path: Path) -> None:
    results = bench(
        tmp_path / "results.json", "--systems", "hitch,haproxy,stunnel", "--scenarios", "start"
    )

    assert {row.system for row in results.rows if row.rounds} == {"hitch", "haproxy", "stunnel"}


def test_a_scenario_that_does_not_exist_is_refused_with_those_that_do() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--scenarios", "nothing"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "new connection, ECDSA, full" in done.stderr
