"""`python -m bench.upgrades`: upgrades under load, and what becomes of the connections.

Thousands of connections are open, some of them carry data all the time, and others come and go.
Meanwhile handfast is upgraded, again and again. Told are the connections that were lost, the bytes
that came back wrong, how long the longest stood still by handfast's own account, and what a client
saw: the longest round trips during the upgrades, and those before them for comparison.

`--stress` makes one connection carry gigabytes in both directions during twenty upgrades, with
nothing else going on; a single sequence number that is used twice or left out would end it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import select
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from bench import load
from bench.systems import certificate

PIECE: Final = 1 << 14
PAUSE: Final = 0.1
"""Seconds between two round trips of a connection that carries data, on average."""
STREAM: Final = 1 << 18
PATIENCE: Final = 60.0


class Holder:
    """A process that holds connections open; of some, round trips are made all the time."""

    def __init__(self, client: load.Client, idle: int, busy: int) -> None:
        self.client = client
        self.idle = idle
        self.busy = busy
        self.times: list[float] = []
        self.lost: list[str] = []
        self._over = threading.Event()

    def run(self, control: Connection) -> None:
        """Connect, say so, carry data until told to end, and say what was seen."""
        with ExitStack() as stack:
            held = [
                stack.enter_context(self.client.connect()) for _ in range(self.idle + self.busy)
            ]
            for each in held:
                load.exchange(each)
            control.send("ready")
            threads = [
                threading.Thread(target=self._carry, args=(each,)) for each in held[: self.busy]
            ]
            for thread in threads:
                thread.start()
            while control.recv() == "times":
                times, self.times = self.times, []
                control.send(times)
            self._over.set()
            for thread in threads:
                thread.join()
            for each in held:
                self._check(each)
            control.send(self.lost)

    def _carry(self, connection: ssl.SSLSocket) -> None:
        data = os.urandom(PIECE)
        wanted = hashlib.sha256(data).digest()
        try:
            while not self._over.is_set():
                began = time.monotonic()
                connection.sendall(data)
                seen, count = hashlib.sha256(), 0
                while count < PIECE:
                    piece = connection.recv(PIECE - count)
                    if not piece:
                        raise OSError("it ended")
                    seen.update(piece)
                    count += len(piece)
                self.times.append(time.monotonic() - began)
                if seen.digest() != wanted:
                    raise OSError("other bytes came back")
                time.sleep(random.uniform(0, 2 * PAUSE))
        except OSError as error:
            self.lost.append(f"a busy one: {error}")

    def _check(self, connection: ssl.SSLSocket) -> None:
        try:
            load.exchange(connection)
        except (OSError, load.LoadError) as error:
            self.lost.append(str(error))


def churn(client: load.Client, control: Connection) -> None:
    """Connect and close until told to end; tell how often, and what failed."""
    count, failures = 0, []
    while not control.poll():
        try:
            load.connections(client, 1)
            count += 1
        except (OSError, load.LoadError) as error:
            failures.append(str(error))
    control.send((count, failures))


class Front:
    """handfast with two workers, and its backend."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        chain, key = certificate(directory)
        backend = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "bench.backend"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
        )  # fmt: skip
        assert backend.stdout is not None
        assert backend.stdin is not None
        stack.callback(backend.stdin.close)
        target = int(backend.stdout.readline())
        self.config = directory / "handfast.yaml"
        self.config.write_text(
            f"nworkers: 2\ncontrol: {directory}/control\nlogfile: {directory}/log\n"
            f"listeners:\n  - listen: 127.0.0.1:0\n    target: tcp://127.0.0.1:{target}\n"
            f"    certificates:\n      - chain: {chain}\n        key: {key}\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "handfast", "serve", "-c", self.config]
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        self.client = load.client(self._port(directory / "log"), chain)

    @staticmethod
    def _port(log: Path) -> int:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            text = log.read_text() if log.exists() else ""
            if "event=listening" in text:
                return int(text.partition("listen_port=")[2].split()[0])
            select.select([], [], [], 0.05)
        raise load.LoadError("handfast does not serve")

    def upgrade(self) -> dict[str, Any]:
        """Upgrade it; give what the command says."""
        done = subprocess.run(
            [sys.executable, "-m", "handfast", "upgrade", "-c", self.config, "--json"],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if done.returncode:
            raise load.LoadError(f"an upgrade failed: {done.stderr.strip()}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def quantile(values: list[float], share: float) -> float:
    """Give the value that so large a share is not above, in milliseconds."""
    ordered = sorted(values) or [0.0]
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def crowd(front: Front, connections: int, busy: int, upgrades: int) -> dict[str, Any]:
    """Upgrade under many connections; give the figures."""
    holders = 2
    processes, ends = [], []
    for _ in range(holders):
        ours, theirs = multiprocessing.Pipe()
        holder = Holder(front.client, (connections - busy) // holders, busy // holders)
        processes.append(multiprocessing.Process(target=holder.run, args=(theirs,), daemon=True))
        ends.append(ours)
    churning, theirs = multiprocessing.Pipe()
    processes.append(
        multiprocessing.Process(target=churn, args=(front.client, theirs), daemon=True)
    )
    for process in processes[:holders]:
        process.start()
    for end in ends:
        end.recv()
    processes[-1].start()
    time.sleep(5)
    before = _times(ends)
    reports = [front.upgrade() for _ in range(upgrades)]
    during = _times(ends)
    churning.send("end")
    came, refused = churning.recv()
    for end in ends:
        end.send("end")
    lost = [each for end in ends for each in end.recv()]
    for process in processes:
        process.join()
    return {
        "connections": connections,
        "carrying data": busy,
        "lost": len(lost),
        "why": sorted(set(lost))[:5],
        "connections that came and went": came,
        "of those failed": len(refused),
        "why those": sorted(set(refused))[:5],
        "moved": [each["moved"] for each in reports],
        "seconds": [each["seconds"] for each in reports],
        "stall p99 below ms": [each["p99_stall"] * 1000 for each in reports],
        "longest stall ms": [round(each["longest_stall"] * 1000, 1) for each in reports],
        "round trip before, p50 p99 max ms": _three(before),
        "round trip during, p50 p99 max ms": _three(during),
    }


def _times(ends: list[Connection]) -> list[float]:
    for end in ends:
        end.send("times")
    return [each for end in ends for each in end.recv()]


def _three(times: list[float]) -> list[float]:
    return [round(quantile(times, share), 1) for share in (0.5, 0.99, 1.0)]


def stress(front: Front, gigabytes: float, upgrades: int) -> dict[str, Any]:
    """Carry bytes both ways over one connection during all the upgrades; give the figures."""
    block = os.urandom(STREAM)
    wanted = int(gigabytes * (1 << 30)) // STREAM
    state = {"received": 0}
    over = threading.Event()
    failure: list[str] = []

    def run() -> None:
        try:
            with front.client.connect() as plain:
                while state["received"] < wanted or not over.is_set():
                    _there_and_back(plain, block)
                    state["received"] += 1
        except OSError as error:
            failure.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    moved = [front.upgrade()["moved"] for _ in range(upgrades)]
    over.set()
    thread.join()
    return {
        "bytes each way": state["received"] * STREAM,
        "upgrades": upgrades,
        "moved": moved,
        "failures": failure,
    }


def _there_and_back(connection: ssl.SSLSocket, block: bytes) -> None:
    """Send a block, which fits into the buffers on its way, and take it back; raises OSError."""
    connection.sendall(block)
    seen = bytearray()
    while len(seen) < len(block):
        piece = connection.recv(len(block) - len(seen))
        if not piece:
            raise OSError("it ended")
        seen += piece
    if seen != block:
        raise OSError("other bytes came back")


def main() -> int:
    """Run both, and print the figures; 1 when anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m bench.upgrades", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--busy", type=int, default=200)
    parser.add_argument("--upgrades", type=int, default=5)
    parser.add_argument("--stress", type=float, default=1.0, help="gigabytes; 0 leaves it out")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        front = Front(Path(name), stack)
        results["crowd"] = crowd(front, options.connections, options.busy, options.upgrades)
        if options.stress:
            results["stress"] = stress(front, options.stress, 20)
    print(json.dumps(results, indent=2))
    bad = results["crowd"]["lost"] or results["crowd"]["of those failed"]
    return 1 if bad or results.get("stress", {}).get("failures") else 0


if __name__ == "__main__":
    sys.exit(main())
