"""The resolver: what it does for relays, what it refuses, and that nothing wedges it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from handfast.config import HandoffAddress, TargetAddress, TcpAddress, UnixAddress
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process import lookups, resolving
from handfast.process.fork import fork
from handfast.process.messages import Ready, Serve, control_pair, receive_from_child, send
from handfast.process.ownership import owner_of
from handfast.process.resolving import MAX_QUESTIONS, Resolving
from handfast.relay import question
from handfast.relay.question import Answer, Ask, Connect, Connected, Found, NotFound, Open, Opened
from handfast.transport.loop import Loop
from harness.backends import Backend
from harness.processes import Watched, descriptors

PATIENCE = 20.0
NAME = "app.example"


class Names:
    """A `getaddrinfo` that the test answers for; a name in `held` hangs until `let_go`."""

    def __init__(self, **known: str) -> None:
        self.known = {name.replace("_", "."): ip for name, ip in known.items()}
        self.held: set[str] = set()
        self.asked: list[str] = []
        self._going = threading.Event()

    def let_go(self) -> None:
        self._going.set()

    def __call__(self, host: str, *_: object, **__: object) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if host in self.held:
            assert self._going.wait(PATIENCE)
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        ip = self.known[host]
        if ":" in ip:
            return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (ip, 0, 0, 0))]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0))]


class Service:
    """A resolver on a loop of the test's, with the relays' ends of its channels."""

    def __init__(self, names: Names, addresses: Iterable[TargetAddress], relays: int) -> None:
        self.loop = Loop()
        self.names = names
        pairs = [question.pair() for _ in range(relays)]
        self.relays = [near for near, _ in pairs]
        self._far = [far for _, far in pairs]
        self.log = Log(os.open(os.devnull, os.O_WRONLY), Level.INFO, process_type="worker")
        self.ended = 0
        self.resolving = Resolving(
            self.loop, self._far, addresses, self.log, self._end, getaddrinfo=names
        )
        self._number = 0

    def _end(self) -> None:
        self.ended += 1

    def close(self) -> None:
        self.names.let_go()
        self.resolving.lookups.close()
        for sock in self.relays + self._far:
            sock.close()
        self.log.close()
        self.loop.close()

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            self.turn()

    def turn(self) -> None:
        """Let the resolver do what there is to do."""
        self.loop.call_later(0.002, self.loop.stop)
        self.loop.run()

    def ask(self, host: str = NAME, port: int = 80, relay: int = 0) -> int:
        self._number += 1
        assert question.send(self.relays[relay], Ask(self._number, host, port))
        return self._number

    def connect(self, path: Path | str) -> int:
        self._number += 1
        assert question.send(self.relays[0], Connect(self._number, str(path)))
        return self._number

    def taken(self, relay: int = 0) -> tuple[Answer, int]:
        """Wait for one answer, and the descriptor with it."""
        found: list[tuple[Answer, int]] = []

        def take() -> bool:
            answer = question.receive_answer(self.relays[relay])
            found.extend([answer] if answer is not None else [])
            return bool(found)

        self.until(take)
        return found[0]

    def answer(self, relay: int = 0) -> Answer:
        return self.taken(relay)[0]


def targets(*hosts: str) -> list[TargetAddress]:
    return [TcpAddress(host=host, port=80) for host in hosts]


Make = Callable[..., Service]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Service] = []

    def one(names: Names, addresses: Iterable[TargetAddress] = (), relays: int = 1) -> Service:
        made.append(Service(names, addresses or targets(*names.known), relays))
        return made[-1]

    yield one
    for service in made:
        service.close()


def test_a_name_gives_its_addresses(make: Make) -> None:
    service = make(Names(app_example="192.0.2.1", six_example="2001:db8::1"))

    service.ask()
    service.ask("six.example")

    # Two threads look them up, and either may be first.
    answers = [service.answer(), service.answer()]
    assert sorted(answers, key=lambda each: each.number) == [
        Found(1, (("192.0.2.1", 0),)),
        Found(2, (("2001:db8::1", 0),)),
    ]


def test_a_change_of_the_name_is_in_the_next_answer(make: Make) -> None:
    names = Names(app_example="192.0.2.1")
    service = make(names)
    service.ask()
    before = service.answer()

    names.known[NAME] = "192.0.2.2"
    service.ask()

    assert before == Found(1, (("192.0.2.1", 0),))
    assert service.answer() == Found(2, (("192.0.2.2", 0),))


def test_a_name_that_does_not_exist_is_answered_with_the_reason(make: Make) -> None:
    service = make(Names(), targets("gone.example"))

    service.ask("gone.example")

    assert service.answer() == NotFound(
        1, "cannot resolve gone.example", "Name or service not known"
    )


@pytest.mark.parametrize(("host", "port"), [("evil.example", 80), (NAME, 81)])
def test_what_is_no_target_is_not_looked_up(make: Make, host: str, port: int) -> None:
    service = make(Names(app_example="192.0.2.1"))

    service.ask(host, port)

    assert service.answer() == NotFound(1, "not a target of the configuration")
    assert not service.names.asked


def test_another_configuration_allows_other_targets(make: Make, tmp_path: Path) -> None:
    names = Names(app_example="192.0.2.1", new_example="192.0.2.2")
    service = make(names, targets(NAME))

    service.resolving.configure(targets("new.example"))
    service.ask("new.example")
    service.ask(NAME)

    assert service.answer() == Found(1, (("192.0.2.2", 0),))
    assert service.answer() == NotFound(2, "not a target of the configuration")


def test_relays_share_one_query(make: Make) -> None:
    names = Names(app_example="192.0.2.1")
    names.held.add(NAME)
    service = make(names, relays=3)

    for relay in (0, 1, 2, 2):
        service.ask(relay=relay)
    service.until(lambda: names.asked)
    names.let_go()

    assert [service.answer(relay) for relay in (0, 1, 2, 2)] == [
        Found(number, (("192.0.2.1", 0),)) for number in (1, 2, 3, 4)
    ]
    assert names.asked == [NAME]


def test_a_slow_name_does_not_hold_up_another(make: Make) -> None:
    names = Names(app_example="192.0.2.1", slow_example="192.0.2.2")
    names.held.add("slow.example")
    service = make(names)

    service.ask("slow.example")
    service.ask()
    first = service.answer()
    names.let_go()

    assert first == Found(2, (("192.0.2.1", 0),))
    assert service.answer() == Found(1, (("192.0.2.2", 0),))


def test_names_that_hang_are_given_up_and_those_behind_them_are_served(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "LOOKUP_SECONDS", 0.5)
    stuck = [f"stuck-{number}.example" for number in range(lookups.MAX_RUNNING)]
    names = Names(app_example="192.0.2.1")
    names.held.update(stuck)
    service = make(names, targets(NAME, *stuck))
    for host in stuck:
        service.ask(host)
    service.until(lambda: len(names.asked) == len(stuck))
    answers = [service.answer() for _ in stuck]

    service.ask()

    assert answers == [
        NotFound(number, f"cannot resolve {host}", "no answer in 0.5 s")
        for number, host in enumerate(stuck, 1)
    ]
    assert service.answer() == Found(len(stuck) + 1, (("192.0.2.1", 0),))


def test_threads_that_hang_are_bounded_and_recovered(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "LOOKUP_SECONDS", 0.3)
    stuck = [f"stuck-{number}.example" for number in range(2 * lookups.MAX_THREADS)]
    names = Names(app_example="192.0.2.1")
    names.held.update(stuck)
    service = make(names, targets(NAME, *stuck))

    def threads() -> int:
        return sum(each.name.startswith("lookup stuck-") for each in threading.enumerate())

    for _ in range(4):
        for host in stuck:
            service.ask(host)
        for _ in stuck:
            assert isinstance(service.answer(), NotFound)
    during = threads()
    names.let_go()
    service.until(lambda: not threads())
    service.ask()

    assert during == lookups.MAX_THREADS
    assert isinstance(service.answer(), Found)


def test_a_name_that_hangs_is_not_asked_for_twice(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "LOOKUP_SECONDS", 0.3)
    names = Names(app_example="192.0.2.1")
    names.held.add(NAME)
    service = make(names)
    for _ in range(3):
        service.ask()
        assert isinstance(service.answer(), NotFound)
    service.ask()
    service.until(lambda: names.asked)
    names.let_go()

    assert service.answer() == Found(4, (("192.0.2.1", 0),))
    assert names.asked == [NAME]


def test_a_relay_that_asks_too_much_is_told_so_and_the_others_are_served(make: Make) -> None:
    names = Names(app_example="192.0.2.1", slow_example="192.0.2.2")
    names.held.add("slow.example")
    service = make(names, relays=2)

    for _ in range(MAX_QUESTIONS + 1):
        service.ask("slow.example")
        service.turn()
    refused = service.answer()
    service.ask(relay=1)

    assert isinstance(refused, NotFound)
    assert refused.reason == f"{MAX_QUESTIONS} questions have no answer yet"
    assert isinstance(service.answer(1), Found)


def test_answers_wait_for_a_relay_that_does_not_read_and_none_is_lost(
    make: Make, tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    service = make(Names(), [UnixAddress(path=str(path))])
    [relay] = service.relays
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(4096)
        asked = 0
        while asked < 2000 and question.send(relay, Connect(asked, str(path))):
            asked += 1
            service.turn()
        answered = []
        for _ in range(asked):
            answer, descriptor = service.taken()
            os.close(descriptor)
            answered.append(answer.number)

    assert answered == list(range(asked))
    assert asked < 2000, "the channel was full at some time"


def test_an_order_that_comes_behind_the_question_is_in_time(make: Make) -> None:
    service = make(Names(app_example="192.0.2.1"), targets("other.example"))

    service.ask()
    service.turn()
    service.resolving.configure(targets(NAME))

    assert service.answer() == Found(1, (("192.0.2.1", 0),))


def test_a_unix_target_gives_a_connected_socket(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    service = make(Names(), [UnixAddress(path=str(path))])
    before = descriptors(os.getpid())
    with Backend(family=socket.AF_UNIX, address=str(path)) as backend:
        service.connect(path)
        answer, descriptor = service.taken()
        with socket.socket(fileno=descriptor) as sock:
            blocking = os.get_blocking(descriptor)
            sock.settimeout(PATIENCE)
            sock.sendall(b"hello")
            echoed = sock.recv(100)
        assert backend.served.acquire(timeout=PATIENCE)

    assert answer == Connected(1)
    assert not blocking
    assert echoed == b"hello"
    assert descriptors(os.getpid()) == before


def test_a_unix_target_that_nobody_serves_is_answered_with_the_reason(
    make: Make, tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    service = make(Names(), [UnixAddress(path=str(path))])

    service.connect(path)

    assert service.answer() == NotFound(1, f"cannot connect to {path}", "No such file or directory")


def test_a_path_that_is_no_target_is_not_connected_to(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "secret.sock"
    service = make(Names(), targets(NAME))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        service.connect(path)
        answer = service.answer()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()

    assert answer == NotFound(1, "not a target of the configuration")


def application(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_an_application_gives_a_connected_socket_and_tells_whose_it_is(
    make: Make, tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    service = make(Names(), [HandoffAddress(path=str(path), user="shop")])
    with application(path) as server:
        assert question.send(service.relays[0], Open(1, str(path), "shop"))
        answer, descriptor = service.taken()
        with socket.socket(fileno=descriptor) as sock, server.accept()[0] as connection:
            assert not os.get_blocking(descriptor)
            sock.send(b"a message")
            assert connection.recv(100) == b"a message"

    owner, doubt = owner_of(str(path))
    assert answer == Opened(1, owner, doubt)


@pytest.mark.parametrize(
    "address",
    [
        HandoffAddress(path="{path}", user="shop"),
        UnixAddress(path="{path}"),
        HandoffAddress(path="{path}.other"),
    ],
    ids=["of another user", "that gets connections", "elsewhere"],
)
def test_an_application_that_is_no_target_is_not_connected_to(
    make: Make, tmp_path: Path, address: HandoffAddress | UnixAddress
) -> None:
    path = tmp_path / "app.sock"
    service = make(Names(), [replace(address, path=address.path.format(path=path))])
    with application(path):
        assert question.send(service.relays[0], Open(1, str(path)))

        assert service.answer() == NotFound(1, "not a target of the configuration")


def test_a_service_is_no_application(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    service = make(Names(), [HandoffAddress(path=str(path))])
    with Backend(family=socket.AF_UNIX, address=str(path)):
        assert question.send(service.relays[0], Open(1, str(path)))

        assert service.answer() == NotFound(
            1, f"cannot connect to {path}", "Protocol wrong type for socket"
        )


def test_noise_of_a_relay_is_refused_and_the_next_question_is_answered(make: Make) -> None:
    service = make(Names(app_example="192.0.2.1"))
    before = descriptors(os.getpid())

    socket.send_fds(service.relays[0], [b"noise"], [0, 1])
    service.ask()

    assert isinstance(service.answer(), Found)
    assert descriptors(os.getpid()) == before


def test_a_relay_that_is_gone_leaves_nothing_behind(make: Make) -> None:
    names = Names(app_example="192.0.2.1")
    names.held.add(NAME)
    service = make(names, relays=2)
    service.ask()
    service.until(lambda: names.asked)

    service.relays[0].close()
    service.turn()
    names.let_go()
    service.ask(relay=1)

    assert isinstance(service.answer(1), Found)


# What follows is a process of its own.


@pytest.fixture
def process() -> Iterator[tuple[int, socket.socket, socket.socket]]:
    """A resolver as handfast starts it: its PID, the supervisor's end, and the relay's."""
    ours, theirs = control_pair()
    asking, answering = question.pair()
    log = Log(os.open(os.devnull, os.O_WRONLY), Level.INFO, process_type="worker")

    def main() -> int:
        return resolving.run(theirs, (answering,), [], log)

    pid = fork("resolver", main, {theirs.fileno(), answering.fileno(), log.fileno()})
    theirs.close()
    answering.close()
    log.close()
    with ours, asking:
        yield pid, ours, asking
    os.waitpid(pid, 0)


def test_as_a_process_it_is_ready_resolves_and_ends_with_its_supervisor(
    process: tuple[int, socket.socket, socket.socket],
) -> None:
    pid, control, channel = process
    control.setblocking(True)
    channel.settimeout(PATIENCE)
    received = receive_from_child(control)
    question.send(channel, Ask(6, "localhost", 80))
    refused = question.receive_answer(channel)
    many = (f"target-{number}.example.com" for number in range(20_000))
    order = resolving.seal_targets(tuple(targets("localhost", *many)))
    send(control, Serve(), order)
    os.close(order)
    question.send(channel, Ask(7, "localhost", 80))
    taken = question.receive_answer(channel)
    watched = Watched(pid)
    control.close()
    watched.wait()

    assert received is not None
    assert isinstance(received[0], Ready)
    assert refused is not None
    assert isinstance(refused[0], NotFound)
    assert taken is not None
    assert isinstance(taken[0], Found)
    assert ("127.0.0.1", 0) in taken[0].places or ("::1", 0) in taken[0].places


_SCRIPT = """
import os, socket, sys
from pathlib import Path
from handfast.config import TcpAddress
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process.ownership import owner_of
from handfast.process.resolving import Resolving
from handfast.relay import question
from handfast.transport.loop import Loop

hosts, host = Path(sys.argv[1]), "moving.example"
loop = Loop()
near, far = question.pair()
log = Log(1, Level.INFO, process_type="worker")
resolver = Resolving(loop, [far], [TcpAddress(host=host, port=80)], log, loop.stop)
loop.add_reader(near.fileno(), loop.stop)
for number, ip in enumerate(("127.0.0.8", "127.0.0.9")):
    hosts.write_text(f"{ip} {host}\\n")
    question.send(near, question.Ask(number, host, 80))
    loop.run()
    print(question.receive_answer(near)[0].places[0][0], flush=True)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="a file of its own as /etc/hosts needs root")
def test_a_change_of_the_systems_own_names_is_followed(tmp_path: Path) -> None:
    hosts, script = tmp_path / "hosts", tmp_path / "script.py"
    hosts.touch()
    script.write_text(_SCRIPT)
    command = f'mount --bind "{hosts}" /etc/hosts && exec "{sys.executable}" "{script}" "{hosts}"'
    unshare = shutil.which("unshare")
    assert unshare is not None

    ended = subprocess.run(
        [unshare, "--mount", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    assert ended.stdout.split() == ["127.0.0.8", "127.0.0.9"], ended.stderr
