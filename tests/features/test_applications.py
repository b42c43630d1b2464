"""Sessions that are handed over to an application, by a real handfast."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from handfast import app
from harness.clients import TIMEOUT
from harness.streams import memory_client, random_bytes, sha256

if TYPE_CHECKING:
    from conftest import Certificates
    from features.conftest import Start

Serve = Callable[[app.Connection], None]


def echo(connection: app.Connection) -> None:
    while data := connection.read():
        connection.write(data)


class Application:
    """An application in this process, with a thread for each connection."""

    def __init__(self, path: Path, serve: Serve = echo) -> None:
        self.path = path
        self.connections: list[app.Connection] = []
        self.errors: list[Exception] = []
        self._serve = serve
        self._listener = app.listen(path, mode=0o666, trusted=("nobody",))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    @property
    def target(self) -> str:
        return f"handoff:{self.path}"

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                connection = self._listener.accept(timeout=0.05)
            except TimeoutError:
                continue
            connection.timeout = TIMEOUT
            self.connections.append(connection)
            thread = threading.Thread(target=self._handle, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _handle(self, connection: app.Connection) -> None:
        try:
            with connection:
                self._serve(connection)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.errors.append(error)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
        self._listener.close()


Applications = Callable[..., Application]


@pytest.fixture
def application(public_path: Path) -> Iterator[Applications]:
    """Run applications: `application()`, `application(serve)`."""
    with ExitStack() as stack:

        def run(serve: Serve = echo, name: str = "app.sock") -> Application:
            made = Application(public_path / name, serve)
            stack.callback(made.close)
            return made

        yield run


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_application_gets_the_session_itself(
    start: Start, application: Applications, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    running = application()
    front = start({"target": running.target, "alpn": ["echo"]})

    with memory_client(front.port(), certificates.ca, version) as client:
        data = random_bytes(2_000_000)
        assert client.exchange(data, len(data)) == sha256(data)
        client.close_write()
        assert client.read() == b""

    told = front.wait("proxy", subevent="handed_over")
    assert told["server_ip"] == running.target
    assert told["transport"] == "user"
    assert not front.events("proxy", subevent="client_disconnect")
    assert front.status()["totals"]["handed_over"] == 1
    assert not running.errors
