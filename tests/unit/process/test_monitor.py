from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.observe.status import ProcessStatus, Status
from handfast.process import monitor
from handfast.process.commands import Answer
from handfast.process.fork import fork
from handfast.process.gathering import MonitorClient
from handfast.process.messages import (
    Ready,
    StatusRequest,
    control_pair,
    receive_from_child,
)

TIMEOUT = 10.0
SERVING = Status(
    version="1",
    pid=1,
    uptime=2.5,
    state="serving",
    config="test",
    listeners=(),
    processes=(ProcessStatus("supervisor", 1), ProcessStatus("relay-1", 2)),
    totals={},
)


class Answered:
    """An answer of the monitor's."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        self.code = int(line.split()[1])
        self.headers = {
            name.lower(): value for name, _, value in (e.partition(": ") for e in lines)
        }


class Supervised:
    """A monitor in a process of its own, and the supervisor's end of its control pair."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.setblocking(False)
        self.control, theirs = control_pair()
        read, self._log = os.pipe()
        self.log = read

        def main() -> int:
            log = Log(self._log, Level.INFO, process_type="worker", worker_id="monitor")
            return monitor.run(theirs, self.listening, log)

        keep = {theirs.fileno(), self.listening.fileno(), self._log}
        self.pid = fork("monitor", main, keep)
        theirs.close()
        os.close(self._log)
        assert self.hear() == Ready()

    def hear(self) -> object:
        """Take the monitor's next message."""
        assert select.select([self.control], [], [], TIMEOUT)[0], "the monitor is silent"
        received = receive_from_child(self.control)
        assert received is not None
        return received[0]

    def reply(self, status: Status) -> None:
        """Wait for the monitor's question, and answer it."""
        request = self.hear()
        assert isinstance(request, StatusRequest)
        MonitorClient(self.control, request.number).answer(Answer(status=status))

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listening.getsockname(), TIMEOUT)

    def get(self, target: str, status: Status | None = None, method: str = "GET") -> Answered:
        """Make a request; with a status, the supervisor answers by it."""
        with self.connect() as client:
            client.sendall(f"{method} {target} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
            if status is not None:
                self.reply(status)
            return Answered(to_end(client))

    def close(self) -> None:
        self.control.close()
        _, status = os.waitpid(self.pid, 0)
        self.listening.close()
        log = os.read(self.log, 65536)
        os.close(self.log)
        assert (status, log) == (0, b"")


def to_end(client: socket.socket) -> bytes:
    data = b""
    while piece := client.recv(65536):
        data += piece
    return data


@pytest.fixture(scope="module")
def supervised() -> Iterator[Supervised]:
    made = Supervised()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def stale(supervised: Supervised) -> None:
    """Let the answer that the monitor has from the test before be too old."""
    select.select([], [], [], monitor.FRESH_SECONDS + 0.01)


def test_metrics_come_in_the_text_format(supervised: Supervised) -> None:
    answer = supervised.get("/metrics", SERVING)

    assert answer.code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["connection"] == "close"
    assert b"\nhandfast_uptime_seconds{} 2.5\n" in answer.body


def test_head_gives_the_head_alone(supervised: Supervised) -> None:
    answer = supervised.get("/metrics", SERVING, "HEAD")

    assert (answer.code, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


def test_a_query_does_not_change_the_page(supervised: Supervised) -> None:
    assert supervised.get("/healthz?x=/metrics", SERVING).body == b"ok\n"


@pytest.mark.parametrize(
    ("status", "code", "body"),
    [
        (SERVING, 200, b"ready\n"),
        (replace(SERVING, state="starting"), 503, b"starting\n"),
        (replace(SERVING, state="draining"), 503, b"draining\n"),
        (
            replace(SERVING, processes=(ProcessStatus("relay-1", 0), ProcessStatus("relay-2", 4))),
            503,
            b"not ready: relay-1\n",
        ),
        (
            replace(SERVING, processes=(ProcessStatus("relay-1", 3, ready=False),)),
            503,
            b"not ready: relay-1\n",
        ),
        (
            replace(
                SERVING,
                processes=(*SERVING.processes, ProcessStatus("acceptor-1", 0, current=False)),
            ),
            200,
            b"ready\n",
        ),
    ],
    ids=[
        "serving",
        "starting",
        "draining",
        "a dead process",
        "an unready process",
        "one that goes",
    ],
)
def test_ready_means_that_new_connections_are_served(
    supervised: Supervised, status: Status, code: int, body: bytes
) -> None:
    answer = supervised.get("/readyz", status)

    assert (answer.code, answer.body) == (code, body)


def test_a_draining_handfast_is_healthy(supervised: Supervised) -> None:
    assert supervised.get("/healthz", replace(SERVING, state="draining")).code == 200


def test_health_fails_when_the_supervisor_does_not_answer(supervised: Supervised) -> None:
    answer = supervised.get("/healthz")

    assert isinstance(supervised.hear(), StatusRequest)
    assert (answer.code, answer.body) == (503, b"the supervisor does not answer\n")


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(supervised: Supervised) -> None:
    supervised.get("/healthz")
    late = supervised.hear()
    assert isinstance(late, StatusRequest)

    with supervised.connect() as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: here\r\n\r\n")
        current = supervised.hear()
        assert isinstance(current, StatusRequest)
        MonitorClient(supervised.control, late.number).answer(Answer(status=SERVING))
        draining = replace(SERVING, state="draining")
        MonitorClient(supervised.control, current.number).answer(Answer(status=draining))

        assert Answered(to_end(client)).body == b"draining\n"


def test_clients_that_come_together_share_one_question(supervised: Supervised) -> None:
    clients = [supervised.connect() for _ in range(20)]
    for client in clients:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")

    supervised.reply(SERVING)

    for client in clients:
        assert Answered(to_end(client)).code == 200
        client.close()


def test_a_status_of_any_size_arrives(supervised: Supervised) -> None:
    many = tuple(ProcessStatus(f"relay-{number}", number) for number in range(1, 5000))

    answer = supervised.get("/metrics", replace(SERVING, processes=many))

    assert len(answer.body) == int(answer.headers["content-length"]) > 500_000
    assert b'process="relay-4999"' in answer.body


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ("GET /other HTTP/1.1\r\nHost: here\r\n\r\n", 404),
        ("POST /metrics HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\nabc", 405),
        ("CONNECT /metrics HTTP/1.1\r\nHost: here\r\n\r\n", 405),
        ("GET /metrics HTTP/1.1\r\n\r\n", 400),
        ("GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET /metrics\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        ("GET /metrics HTTP/1.1\r\nHost: here\r\nX: " + "a" * 9300 + "\r\n\r\n", 431),
        ("GET /metrics HTTP/1.1\r\nTransfer-Encoding: gzip\r\nHost: a\r\n\r\n", 501),
    ],
    ids=["path", "method", "connect", "no host", "hosts", "0.9", "TLS", "long", "encoding"],
)
def test_what_is_no_good_request_is_refused_and_closed(
    supervised: Supervised, request_: str, code: int
) -> None:
    with supervised.connect() as client:
        client.sendall(request_.encode("latin-1"))
        answer = Answered(to_end(client))

    assert answer.code == code
    assert answer.headers["connection"] == "close"


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200
)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.from_regex(
            rb"\A(GET|HEAD) /\S* HTTP/1\.[01]\r\n([!-~ ]*:[!-~ ]*\r\n)*\r\n", fullmatch=True
        ),
    )
)
def test_no_bytes_stop_the_monitor(supervised: Supervised, data: bytes) -> None:
    with supervised.connect() as client, contextlib.suppress(OSError):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = to_end(client)
        assert answer == b"" or re.match(rb"HTTP/1\.1 [245]\d\d ", answer)


def test_silent_clients_keep_nobody_out(supervised: Supervised) -> None:
    silent = [supervised.connect() for _ in range(monitor.CLIENTS + 20)]

    answer = supervised.get("/healthz", SERVING)

    assert answer.code == 200
    for client in silent[:20]:
        assert to_end(client) == b""
    for client in silent:
        client.close()


def test_a_silent_client_is_closed_after_five_seconds(supervised: Supervised) -> None:
    with supervised.connect() as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
        began = time.monotonic()

        assert to_end(client) == b""

    assert 4.5 < time.monotonic() - began < 7


def test_a_client_that_takes_nothing_is_closed(supervised: Supervised) -> None:
    many = tuple(ProcessStatus(f"relay-{number}", number) for number in range(1, 50_000))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(TIMEOUT)
        client.connect(supervised.listening.getsockname())
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
        supervised.reply(replace(SERVING, processes=many))
        poll = select.poll()
        poll.register(client, 0)  # errors and hang-ups are always told

        assert poll.poll(2000 * monitor.STEP_SECONDS)
