"""The faults, as a table. Each does its damage under load, and says whom it may have cost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Final, TypeAlias

from harness.footprint import Footprint
from harness.instance import wait_for
from harness.load import Churn, Streams, crowd
from harness.processes import kill_and_wait
from harness.scarcity import few_descriptors
from soak.site import Site

ROLES: Final = ("template", "acceptor 1", "acceptor 2", "relay 1", "relay 2", "resolver", "monitor")
_SPARED_SECONDS: Final = 12.0
"""A process that dies again within ten seconds is replaced late, and clients would give up."""
_YEAR: Final = 365 * 86_400.0


class Round:
    """One load, under which some faults happen.

    `excused` are the streams that may break, by the client's port; `tolerated` is how many of the
    passing clients may fail. `deadly` says that processes may have been killed.
    """

    def __init__(self, site: Site, random: Random, streams: Streams, churn: Churn) -> None:
        self.site = site
        self.random = random
        self.streams = streams
        self.churn = churn
        self.excused: set[int] = set()
        self.tolerated = 0
        self.deadly = False
        self.owners = {port: site.running.owner(port) for port in streams.ports}

    def go_on(self) -> None:
        """Check that who is not excused is served."""
        ports = self.streams.ports
        self.streams.go_on(but=tuple(ports[each] for each in self.excused))
        self.churn.go_on()

    def excuse_relay(self, name: str) -> None:
        """Excuse the streams that a relay carries."""
        worker = name.replace(" ", "-")
        self.excused |= {port for port, owner in self.owners.items() if owner == worker}


Fault: TypeAlias = Callable[[Round], None]
_killed: dict[str, float] = {}


def kill(at: Round) -> None:
    """Kill a process; another takes its place."""
    now = time.monotonic()
    spared = {name for name, when in _killed.items() if now - when < _SPARED_SECONDS}
    if not (left := [name for name in ROLES if name not in spared]):
        return
    name = at.random.choice(left)
    _killed[name] = now
    if name.startswith("relay"):
        at.excuse_relay(name)
    at.tolerated += 4
    at.deadly = True
    running = at.site.running
    victim = running.role(name)
    with contextlib.suppress(ProcessLookupError):  # of a generation that has just ended
        kill_and_wait(victim)

    def is_replaced() -> bool:
        found = Footprint.of(running.pid).processes.get(f"handfast: {name}")
        return found is not None and found.pid != victim

    wait_for(is_replaced, f"{name} is replaced")


def freeze(at: Round) -> None:
    """Stop a process for a while, as a machine under pressure does."""
    name = at.random.choice([*ROLES, "supervisor"])
    at.deadly = True  # one that is to end and does not is killed
    with contextlib.suppress(ProcessLookupError):
        pid = at.site.running.role(name)
        os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(at.random.uniform(0.1, 2.0))
        os.kill(pid, signal.SIGCONT)


def reload(at: Round) -> None:
    """Reload, many times."""
    for _ in range(at.random.randrange(1, 20)):
        with at.site.reloading:
            assert at.site.running.reload().error == ""


def new_certificate(at: Round) -> None:
    """Replace the certificate that clients see."""
    at.site.new_certificate()


def refused_reload(at: Round) -> None:
    """Reload what is wrong; nothing may change."""
    running = at.site.running
    with at.site.reloading:
        sound = running.config.read_text()
        running.config.write_text(sound.replace("chain: /", "chain: /missing/", 1))
        answer = running.reload()
        running.config.write_text(sound)
    assert answer.wrong_configuration, answer


def hang_ups(at: Round) -> None:
    """Send many SIGHUPs at once."""
    for _ in range(at.random.randrange(1, 100)):
        at.site.running.process.send_signal(signal.SIGHUP)


def client_resets(at: Round) -> None:
    """Have clients break their connections in the middle."""
    with Streams(at.site.port, at.site.context, 4) as breaking:
        for each in breaking.each:
            each.crash()


def target_resets(at: Round) -> None:
    """Have a target break its connections in the middle."""
    trusting_all = ssl.create_default_context()
    trusting_all.check_hostname = False
    trusting_all.verify_mode = ssl.CERT_NONE
    for _ in range(4):
        sock = socket.create_connection(("127.0.0.1", at.site.port), 20)
        with trusting_all.wrap_socket(sock, server_hostname="breaker.test") as client:
            try:
                while True:
                    client.sendall(bytes(16384))
                    assert client.recv(65536), "a reset looked like an orderly end"
            except OSError:
                pass


def silence(at: Round) -> None:
    """Have a crowd connect and say nothing."""
    with crowd(at.site.port, at.random.randrange(50, 500)):
        at.go_on()


def garbage(at: Round) -> None:
    """Have a crowd talk nonsense."""
    size = at.random.randrange(1, 2000)
    count = at.random.randrange(50, 500)
    with crowd(at.site.port, count, lambda sock: sock.send(os.urandom(size))):
        at.go_on()


def exhausted_acceptor(at: Round) -> None:
    """Leave an acceptor no descriptors for a while."""
    name = at.random.choice(["acceptor 1", "acceptor 2"])
    with (
        at.site.reloading,
        contextlib.suppress(FileNotFoundError),  # it was of a generation that ends, and has ended
        few_descriptors(at.site.running.role(name), 0),
        crowd(at.site.port, 40),
    ):
        threading.Event().wait(at.random.uniform(0.1, 1.0))


def exhausted_relay(at: Round) -> None:
    """Leave a relay no descriptors for a while."""
    at.tolerated += 30  # one each time that it looks whether there are some again
    name = at.random.choice(["relay 1", "relay 2"])
    with few_descriptors(at.site.running.role(name), 1):
        threading.Event().wait(at.random.uniform(0.1, 1.0))


def full_disk(at: Round) -> None:
    """Fill the disk that the log is on for a while."""
    ballast = at.site.disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while stream.write(bytes(1 << 20)):
            pass
    at.go_on()
    ballast.unlink()


def rotation(at: Round) -> None:
    """Rotate the log."""
    running = at.site.running
    running.log.rename(running.log.with_suffix(".old"))
    running.reopen_log()
    at.churn.go_on()
    running.follow()


def clock_jump(at: Round) -> None:
    """Turn the wall clock, and turn it back."""
    at.site.clock.jump(at.random.uniform(-20 * _YEAR, 20 * _YEAR))
    at.go_on()
    at.site.clock.jump(0)


def scrapes(at: Round) -> None:
    """Ask for the metrics, the health and the status, and hang up in between."""
    for _ in range(10):
        assert b" 200 " in at.site.scrape("/metrics").partition(b"\r\n")[0]
        with socket.socket(socket.AF_UNIX) as hasty:
            hasty.connect(str(at.site.metrics))
        assert at.site.running.status()["state"] == "serving"


TABLE: Final[tuple[Fault, ...]] = (
    *(kill, kill, freeze, reload, new_certificate, refused_reload, hang_ups),
    *(client_resets, target_resets, silence, garbage, exhausted_acceptor, exhausted_relay),
    *(full_disk, rotation, clock_jump, scrapes),
)
