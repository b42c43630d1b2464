"""The monitor: metrics and health over HTTP, for whoever watches handfast.

It knows nothing by itself. For each request it asks the supervisor for the status, so `/healthz`
is well only if the supervisor answers. Requests that come while it asks share the answer, and an
answer is good for a tenth of a second: however many ask, the supervisor is not kept busy.

The address is meant to be local, and its clients are not trusted all the same. Each may send one
request of 8 KB and has 5 s for each step; 64 may be connected, and one more has the oldest make
room for it, so that silent clients keep nobody out.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import h11
import msgspec

from handfast.observe import metrics
from handfast.observe.counters import Counters
from handfast.observe.log import Log
from handfast.observe.status import Status
from handfast.process import worker
from handfast.process.messages import StatusReply, StatusRequest, ToChild, send
from handfast.process.sealed import unseal
from handfast.transport.deadlines import Deadlines
from handfast.transport.loop import Loop
from handfast.transport.plain import finish, reset

CLIENTS: Final = 64
MAX_HEAD: Final = 8192
STEP_SECONDS: Final = 5.0
LINGER_SECONDS: Final = 1.0
ASK_SECONDS: Final = 3.0
"""How long the supervisor has for its answer; it gives its workers one second."""
FRESH_SECONDS: Final = 0.1

_RETRY_SECONDS: Final = 0.1
_READ_SIZE: Final = 1024


class Page(msgspec.Struct, frozen=True):
    """An answer: the code, the body, and its type."""

    code: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


def metrics_page(status: Status | None) -> Page:
    """Give all metrics, or 503 when the supervisor does not answer."""
    if status is None:
        return healthz_page(status)
    return Page(200, metrics.render(status), metrics.CONTENT_TYPE)


def healthz_page(status: Status | None) -> Page:
    """Say whether the supervisor answers."""
    return Page(503, b"the supervisor does not answer\n") if status is None else Page(200, b"ok\n")


def readyz_page(status: Status | None) -> Page:
    """Say whether new connections are served, and if not, why."""
    if status is None:
        return healthz_page(status)
    reason = status.unready()
    return Page(503, reason.encode() + b"\n") if reason else Page(200, b"ready\n")


PAGES: Final[dict[bytes, Callable[[Status | None], Page]]] = {
    b"/metrics": metrics_page,
    b"/healthz": healthz_page,
    b"/readyz": readyz_page,
}


class Exchange:
    """One client, its request and its answer. It owns the socket."""

    __slots__ = ("_head_only", "_http", "_monitor", "_output", "_page", "_sock", "bucket")

    def __init__(self, monitor: Monitor, sock: socket.socket) -> None:
        self.bucket = 0
        self._monitor = monitor
        self._sock = sock
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._page: Callable[[Status | None], Page] = healthz_page
        self._head_only = False
        self._output = b""
        monitor.loop.add_reader(sock.fileno(), self._readable)
        self._allow(STEP_SECONDS)

    def _allow(self, seconds: float) -> None:
        loop = self._monitor.loop
        self._monitor.deadlines.set(self, loop.time() + seconds)

    def _readable(self) -> None:
        try:
            self._http.receive_data(self._sock.recv(_READ_SIZE))
            event = self._http.next_event()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        except h11.RemoteProtocolError as error:
            self._refuse(Page(error.error_status_hint, f"{error}\n".encode()))
            return
        if isinstance(event, h11.Request):
            self._monitor.loop.remove_reader(self._sock.fileno())
            self._head_only = event.method == b"HEAD"
            self._route(event)
        elif isinstance(event, h11.ConnectionClosed):
            self.close()

    def _route(self, request: h11.Request) -> None:
        page = PAGES.get(request.target.partition(b"?")[0])
        if page is None:
            self._send(Page(404, b"there is /metrics, /healthz and /readyz\n"))
        elif request.method not in (b"GET", b"HEAD"):
            self._send(Page(405, b"GET or HEAD it\n"), (("Allow", "GET, HEAD"),))
        else:
            self._page = page
            self._allow(STEP_SECONDS)
            self._monitor.ask(self)

    def answer(self, status: Status | None) -> None:
        """Answer by the status; None is that there was no answer."""
        self._send(self._page(status))

    def _refuse(self, page: Page) -> None:
        self._monitor.loop.remove_reader(self._sock.fileno())
        self._send(page)

    def _send(self, page: Page, headers: tuple[tuple[str, str], ...] = ()) -> None:
        every = [
            ("Content-Type", page.content_type),
            ("Content-Length", str(len(page.body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
            *headers,
        ]
        http = self._http
        output = http.send(h11.Response(status_code=page.code, headers=every)) or b""
        if not self._head_only:
            output += http.send(h11.Data(page.body)) or b""
        self._output = output + (http.send(h11.EndOfMessage()) or b"")
        self._allow(STEP_SECONDS)
        self._monitor.loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._output)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        self._output = self._output[sent:]
        if not self._output:
            self._linger()

    def _linger(self) -> None:
        """Wait for the client's end: closing with unread input would take the answer back (RST)."""
        loop, descriptor = self._monitor.loop, self._sock.fileno()
        loop.remove_writer(descriptor)
        finish(self._sock)
        self._allow(LINGER_SECONDS)
        loop.add_reader(descriptor, self._discard)

    def _discard(self) -> None:
        try:
            if self._sock.recv(_READ_SIZE):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass  # it has reset the connection: it is over as well
        self.close()

    def expired(self, now: float) -> None:  # noqa: ARG002 - the protocol of Deadlines
        """Close: the client had its time."""
        self.close()

    def close(self) -> None:
        """Close the connection and forget the client."""
        monitor, descriptor = self._monitor, self._sock.fileno()
        monitor.loop.remove_reader(descriptor)
        monitor.loop.remove_writer(descriptor)
        monitor.deadlines.drop(self)
        monitor.forget(self)
        if self._output:
            reset(self._sock)  # or the kernel would keep what the client does not take
        else:
            self._sock.close()


class Monitor:
    """Takes requests from the listening socket, and the status from the control socket."""

    def __init__(
        self,
        loop: Loop,
        control: socket.socket,
        listening: socket.socket,
        ended: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.counters = Counters()
        self.deadlines = Deadlines(loop)
        self._control = control
        self._listening = listening
        self._ended = ended
        self._exchanges: dict[Exchange, None] = {}  # the oldest first
        self._waiting: list[Exchange] = []
        self._number = 0
        self._asking = False
        self._status: Status | None = None
        self._taken = -FRESH_SECONDS
        self._listen()

    def _listen(self) -> None:
        self.loop.add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # descriptors or memory are short
            self.loop.remove_reader(self._listening.fileno())
            self.loop.call_later(_RETRY_SECONDS, self._listen)
            return
        sock.setblocking(False)
        if len(self._exchanges) >= CLIENTS:
            next(iter(self._exchanges)).close()
        self._exchanges[Exchange(self, sock)] = None

    def forget(self, exchange: Exchange) -> None:
        """Take an exchange that has ended out of the books."""
        self._exchanges.pop(exchange, None)
        if exchange in self._waiting:
            self._waiting.remove(exchange)

    def ask(self, exchange: Exchange) -> None:
        """Answer an exchange by a status of just now, or ask for one."""
        if self.loop.time() - self._taken < FRESH_SECONDS:
            exchange.answer(self._status)
            return
        self._waiting.append(exchange)
        if not self._asking:
            self._asking = True
            self._number += 1
            number = self._number
            send(self._control, StatusRequest(number))
            self.loop.call_later(ASK_SECONDS, lambda: self._give_up(number))

    def hear(self, number: int, descriptor: int) -> None:
        """Take the status from the supervisor; one that comes after the next question is void."""
        if number == self._number:
            self._status = msgspec.json.decode(unseal(descriptor), type=Status)
            self._taken = self.loop.time()
            self._answer(self._status)

    def drain(self) -> None:
        """Go on: whoever watches handfast wants to see it drain."""

    def end_all(self, reason: str) -> None:  # noqa: ARG002 - the protocol of workers
        """End."""
        self._ended()

    def _give_up(self, number: int) -> None:
        if self._asking and number == self._number:
            self._answer(None)

    def _answer(self, status: Status | None) -> None:
        self._asking = False
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            exchange.answer(status)


def run(control: socket.socket, listening: socket.socket, log: Log) -> int:
    """Serve until the supervisor is gone. `listening` listens and does not block."""

    def start(loop: Loop, ended: Callable[[], None]) -> Monitor:
        return Monitor(loop, control, listening, ended)

    def order(monitor: Monitor, message: ToChild, descriptors: list[int]) -> None:
        if isinstance(message, StatusReply) and descriptors:
            monitor.hear(message.number, descriptors[0])

    return worker.run(control, log, start, order)
