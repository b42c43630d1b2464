"""What a relay asks the resolver, how long it keeps an answer, and what it does without one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.config import TcpAddress, UnixAddress
from handfast.errors import BackendError, HandfastError
from handfast.relay import question
from handfast.relay.question import (
    Answer,
    Ask,
    Connect,
    Connected,
    Found,
    NotFound,
    Place,
    Question,
)
from handfast.relay.resolver import (
    ANSWER_SECONDS,
    KEEP_SECONDS,
    REFRESH_SECONDS,
    Endpoint,
    Resolver,
    interleave,
)
from harness.processes import descriptors
from unit.relay.clock import Clock

V4, V6 = socket.AF_INET, socket.AF_INET6
NAME = TcpAddress(host="app.example", port=80)
PATH = UnixAddress(path="/run/app.sock")


class Asking:
    """A relay's resolver, and the other end of its channel in the hands of the test."""

    def __init__(self) -> None:
        self.loop = Clock()
        ours, self.channel = question.pair()
        self.ours = ours
        self.resolver = Resolver(self.loop, ours)
        self.answers: list[list[Endpoint] | BackendError] = []
        self.sockets: list[socket.socket | BackendError] = []

    def close(self) -> None:
        for each in (self.ours, self.channel, *self.sockets):
            if isinstance(each, socket.socket):
                each.close()
        self.loop.close()

    def resolve(self, address: TcpAddress = NAME) -> None:
        self.resolver.resolve(address, self.answers.append)

    def connect(self) -> None:
        self.resolver.connect(PATH, self.sockets.append)

    def question(self) -> Question:
        asked = question.receive_question(self.channel)
        assert asked is not None
        return asked

    def silent(self) -> bool:
        return question.receive_question(self.channel) is None

    def answer(self, answer: Answer, sock: socket.socket | None = None) -> None:
        assert question.send(self.channel, answer, sock)
        self.loop.turn()

    def found(self, *places: Place) -> None:
        """Answer the question that waits."""
        self.answer(Found(self.question().number, places))

    def hosts(self) -> list[str]:
        """Give the first address of the last answer's endpoints."""
        answer = self.answers[-1]
        assert isinstance(answer, list)
        return [address[0] for _, address in answer]

    def error(self) -> BackendError:
        answer = (self.answers + self.sockets)[-1]
        assert isinstance(answer, BackendError)
        return answer


@pytest.fixture
def asking() -> Iterator[Asking]:
    one = Asking()
    yield one
    one.close()


def test_an_ip_address_needs_no_asking(asking: Asking) -> None:
    asking.resolve(TcpAddress(host="127.0.0.1", port=80))
    asking.resolve(TcpAddress(host="::1", port=81))

    assert asking.answers == [[(V4, ("127.0.0.1", 80))], [(V6, ("::1", 81, 0, 0))]]
    assert asking.silent()


def test_a_name_is_asked_for_and_its_families_alternate(asking: Asking) -> None:
    asking.resolve()
    asking.found(("fe80::1", 3), ("2001:db8::2", 0), ("192.0.2.1", 0))

    assert asking.answers == [
        [
            (V6, ("fe80::1", 80, 0, 3)),
            (V4, ("192.0.2.1", 80)),
            (V6, ("2001:db8::2", 80, 0, 0)),
        ]
    ]


def test_all_who_want_a_name_wait_for_one_answer(asking: Asking) -> None:
    for _ in range(3):
        asking.resolve()
    asking.found(("192.0.2.1", 0))

    assert len(asking.answers) == 3
    assert asking.silent()


def test_a_change_is_followed_within_ten_seconds_and_nobody_waits_for_it(asking: Asking) -> None:
    asking.resolve()
    asking.found(("192.0.2.1", 0))

    asking.loop.advance(REFRESH_SECONDS)
    asking.resolve()
    before = asking.hosts()
    asking.found(("192.0.2.2", 0))
    asking.resolve()

    assert (before, asking.hosts()) == (["192.0.2.1"], ["192.0.2.2"])


def test_a_failed_refresh_leaves_the_old_answer_for_five_minutes_and_is_counted(
    asking: Asking,
) -> None:
    asking.resolve()
    asking.found(("192.0.2.1", 0))
    refreshes = int(KEEP_SECONDS / REFRESH_SECONDS)
    for number in range(1, refreshes + 1):
        asking.loop.advance(REFRESH_SECONDS)
        asking.resolve()
        assert asking.hosts() == ["192.0.2.1"], number
        asking.answer(NotFound(asking.question().number, "cannot resolve app.example"))

    asking.resolve()
    asking.answer(NotFound(asking.question().number, "cannot resolve app.example"))

    assert asking.error().reason == "cannot resolve app.example"
    assert asking.resolver.failed_refreshes == refreshes - 1


def test_a_refresh_that_succeeds_again_starts_the_five_minutes_anew(asking: Asking) -> None:
    asking.resolve()
    asking.found(("192.0.2.1", 0))
    for _ in range(3):
        for _ in range(20):
            asking.loop.advance(REFRESH_SECONDS)
            asking.resolve()
            asking.answer(NotFound(asking.question().number, "no"))
        asking.loop.advance(REFRESH_SECONDS)
        asking.found(("192.0.2.3", 0))

    asking.resolve()

    assert asking.hosts() == ["192.0.2.3"]


def test_a_name_that_nothing_uses_is_not_asked_for_for_ever(asking: Asking) -> None:
    asking.resolve()
    asking.found(("192.0.2.1", 0))
    asked = 0
    for _ in range(100):
        asking.loop.advance(REFRESH_SECONDS)
        if (each := question.receive_question(asking.channel)) is not None:
            asked += 1
            asking.answer(Found(each.number, (("192.0.2.1", 0),)))

    assert asked == KEEP_SECONDS / REFRESH_SECONDS - 1


def test_a_failure_is_told_to_all_who_wait_and_the_next_asks_again(asking: Asking) -> None:
    asking.resolve()
    asking.resolve()
    asking.answer(NotFound(asking.question().number, "cannot resolve app.example", "no such name"))
    failures = list(asking.answers)
    asking.resolve()
    asking.found(("192.0.2.1", 0))

    assert [str(each) for each in failures] == ["cannot resolve app.example: no such name"] * 2
    assert asking.hosts() == ["192.0.2.1"]


def test_no_answer_is_a_failure_and_a_late_one_is_no_harm(asking: Asking) -> None:
    asking.resolve()
    asking.connect()
    name, path = asking.question(), asking.question()
    asking.loop.advance(ANSWER_SECONDS)
    after = len(asking.answers), len(asking.sockets)
    with socket.socket() as sock:
        before = descriptors(os.getpid())
        asking.answer(Connected(path.number), sock)
        asking.answer(Found(name.number, (("192.0.2.1", 0),)))
        left = descriptors(os.getpid()) - before

    assert after == (1, 1)
    assert asking.error().reason == "the resolver gave no answer in 6 s"
    assert left == 0
    asking.resolve()
    assert isinstance(asking.question(), Ask)


def test_a_resolver_that_is_gone_is_a_failure_at_once(asking: Asking) -> None:
    asking.resolve()
    asking.connect()
    asking.channel.close()
    asking.loop.turn()
    asking.resolve()

    assert len(asking.answers) == 2
    assert len(asking.sockets) == 1
    assert asking.error().reason == "the resolver is gone"


def test_more_questions_than_the_channel_holds_are_all_asked(asking: Asking) -> None:
    addresses = [TcpAddress(host=f"app-{number}.example", port=80) for number in range(2000)]
    for address in addresses:
        asking.resolve(address)
    hosts: set[str] = set()
    while len(hosts) < len(addresses):
        asking.loop.turn()
        while (asked := question.receive_question(asking.channel)) is not None:
            assert isinstance(asked, Ask)
            hosts.add(asked.host)

    assert hosts == {address.host for address in addresses}


def test_questions_that_nobody_takes_do_not_pile_up(asking: Asking) -> None:
    for _ in range(3):
        for number in range(2000):
            asking.resolver.connect(UnixAddress(path=f"/run/{number}"), asking.sockets.append)
        asking.loop.advance(ANSWER_SECONDS)

    assert len(asking.sockets) == 6000
    pending = 0
    while question.receive_question(asking.channel) is not None:
        pending += 1
    asking.loop.turn()
    assert pending < 1000
    assert asking.silent()


def test_a_path_gives_a_connected_socket_that_never_blocks(asking: Asking) -> None:
    near, far = socket.socketpair()
    asking.connect()
    asked = asking.question()
    with near, far:
        asking.answer(Connected(asked.number), near)
        [sock] = asking.sockets
        assert isinstance(sock, socket.socket)
        far.sendall(b"hello")
        received = sock.recv(100)

    assert asked == Connect(asked.number, "/run/app.sock")
    assert received == b"hello"
    assert not os.get_blocking(sock.fileno())


@pytest.mark.parametrize("ip", ["", "localhost", "fe80::1%lo", "1.2.3", "/etc/passwd"])
def test_what_is_no_address_is_no_answer(asking: Asking, ip: str) -> None:
    asking.resolve()
    asking.found((ip, 0))

    assert asking.error().reason == "the resolver gave no addresses of app.example"


def test_an_answer_to_another_kind_of_question_is_none(asking: Asking) -> None:
    asking.connect()
    asking.found(("192.0.2.1", 0))
    asking.resolve()
    with socket.socket() as sock:
        before = descriptors(os.getpid())
        asking.answer(Connected(asking.question().number), sock)
        left = descriptors(os.getpid()) - before

    assert str(asking.sockets[0]) == "the resolver did not connect to unix:/run/app.sock"
    assert str(asking.answers[0]) == "the resolver gave no addresses of app.example"
    assert left == 0


def test_a_relay_that_follows_another_does_not_take_its_answers(asking: Asking) -> None:
    asking.resolve()
    asked = asking.question()
    asking.loop.remove_reader(asking.ours.fileno())
    follower = Resolver(asking.loop, asking.ours)
    answers: list[list[Endpoint] | BackendError] = []
    follower.resolve(NAME, answers.append)
    asking.answer(Found(asked.number, (("192.0.2.66", 0),)))
    early = list(answers)
    asking.found(("192.0.2.1", 0))

    assert (early, answers) == ([], [[(V4, ("192.0.2.1", 80))]])


@pytest.mark.parametrize(
    "receive", [question.receive_question, question.receive_answer], ids=["question", "answer"]
)
@given(data=st.binary(min_size=1, max_size=question.MAX_MESSAGE + 10))
def test_noise_is_refused_and_its_descriptors_are_closed(
    receive: Callable[[socket.socket], object], data: bytes
) -> None:
    near, far = question.pair()
    with near, far:
        socket.send_fds(far, [data], [0, 1])
        before = descriptors(os.getpid())
        with pytest.raises(HandfastError):
            receive(near)
        assert descriptors(os.getpid()) == before


numbers = st.integers(0, (1 << 63) - 1)


@given(
    message=st.builds(Ask, numbers, st.text(max_size=512), st.integers(1, 65535))
    | st.builds(Connect, numbers, st.text(max_size=512))
)
def test_questions_survive_the_channel(message: Question) -> None:
    near, far = question.pair()
    with near, far:
        assert question.send(near, message)
        assert question.receive_question(far) == message


def test_the_families_alternate_and_the_first_stays_first() -> None:
    found: list[Endpoint] = [(V6, "a"), (V6, "b"), (V6, "c"), (V4, "d"), (V4, "e")]

    assert [name for _, name in interleave(found)] == ["a", "d", "b", "e", "c"]
    assert [name for _, name in interleave(found[::-1])] == ["e", "c", "d", "b", "a"]


def test_one_family_keeps_its_order() -> None:
    found: list[Endpoint] = [(V4, "a"), (V4, "b")]

    assert interleave(found) == found
    assert interleave([]) == []


endpoints = st.lists(st.sampled_from([V4, V6]), max_size=8).map(
    lambda families: [(family, number) for number, family in enumerate(families)]
)


@given(found=endpoints)
def test_no_address_is_lost_and_each_family_keeps_its_order(found: list[Endpoint]) -> None:
    ordered = interleave(found)

    assert sorted(ordered, key=lambda each: each[1]) == found
    for family in (V4, V6):
        assert [e for e in ordered if e[0] == family] == [e for e in found if e[0] == family]
