from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handfast.config import (
    Certificate,
    ClientAuth,
    Config,
    Listener,
    Route,
    Service,
    Target,
    TargetTls,
    TcpAddress,
)
from handfast.process.watching import Watcher, files_of
from handfast.transport.loop import Callback, Loop, Timer


class Clock(Loop):
    """A loop in which time passes when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.due: list[Timer] = []

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        self.due.append(Timer(callback))
        return self.due[-1]

    def tick(self) -> None:
        due, self.due = self.due, []
        for timer in due:
            if timer.callback is not None:
                timer.callback()


class Watch:
    """A watcher that looks when the test says so."""

    def __init__(self, paths: list[Path]) -> None:
        self.loop = Clock()
        self.changes = 0
        self.watcher = Watcher(self.loop, self.count)
        self.see(paths)

    def count(self) -> None:
        self.changes += 1

    def see(self, paths: list[Path]) -> None:
        self.watcher.watch([str(path) for path in paths])

    def looks(self, number: int, each: Callable[[], object] = lambda: None) -> int:
        """Let it look some times, doing something before each; give the changes told so far."""
        for _ in range(number):
            each()
            self.loop.tick()
        return self.changes


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "chain.pem", tmp_path / "key.pem"]
    for path in paths:
        path.write_text("old")
    return paths


@pytest.fixture
def watch(files: list[Path]) -> Iterator[Watch]:
    watch = Watch(files)
    yield watch
    watch.watcher.close()
    watch.loop.close()


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_files_at_rest_are_no_change(watch: Watch) -> None:
    assert watch.looks(5) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("new"),  # in place, of the same size
        lambda path: replace(path, "old"),
        lambda path: path.unlink(),
        lambda path: os.utime(path, (1, 1)),
    ],
)
def test_a_change_is_told_once(
    watch: Watch, files: list[Path], change: Callable[[Path], object]
) -> None:
    watch.looks(1)
    change(files[0])
    assert watch.looks(6) == 1


def test_a_change_is_not_told_before_the_files_are_at_rest(watch: Watch, files: list[Path]) -> None:
    texts = iter(range(100))
    assert watch.looks(6, lambda: files[0].write_text(f"text {next(texts)}")) == 0
    assert watch.looks(6) == 1


def test_a_certificate_and_its_key_are_one_change(watch: Watch, files: list[Path]) -> None:
    replace(files[0], "new")
    watch.looks(1)
    replace(files[1], "new")
    assert watch.looks(6) == 1


def test_a_file_that_comes_back_is_a_change_of_its_own(watch: Watch, files: list[Path]) -> None:
    files[0].unlink()
    assert watch.looks(4) == 1
    files[0].write_text("new")
    assert watch.looks(4) == 2


def test_a_symbolic_link_that_is_swapped_above_the_file_is_a_change(tmp_path: Path) -> None:
    # A Kubernetes volume: tls.crt -> ..data/tls.crt, ..data -> ..2026_11_21, which is replaced.
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tls.crt").write_text("certificate")
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "tls.crt").symlink_to("data/tls.crt")
    watch = Watch([tmp_path / "tls.crt"])

    (tmp_path / "data.new").symlink_to("two")
    (tmp_path / "data.new").rename(tmp_path / "data")

    assert watch.looks(6) == 1
    watch.watcher.close()
    watch.loop.close()


def test_other_files_are_watched_without_a_change_being_told(
    watch: Watch, files: list[Path], tmp_path: Path
) -> None:
    third = tmp_path / "third.pem"
    third.write_text("text")
    watch.see([files[0], third])
    assert watch.looks(4) == 0
    files[1].write_text("new")
    assert watch.looks(4) == 0
    third.write_text("new")
    assert watch.looks(4) == 1


def test_a_change_between_two_lists_is_not_missed(watch: Watch, files: list[Path]) -> None:
    files[0].write_text("new")
    watch.see(files)
    assert watch.looks(6) == 1


def test_the_real_loop_calls_once_the_files_have_been_left_alone(files: list[Path]) -> None:
    loop = Loop()
    watcher = Watcher(loop, loop.stop, 0.01)
    watcher.watch([str(files[0])])
    files[0].write_text("new")
    loop.run()
    watcher.close()
    loop.close()


def test_nothing_is_told_after_the_end(watch: Watch, files: list[Path]) -> None:
    files[0].write_text("new")
    watch.watcher.close()
    assert watch.looks(4) == 0


def test_every_file_that_a_reload_reads_is_named_once() -> None:
    to_target = Target(
        address=TcpAddress(host="127.0.0.1", port=9), tls=TargetTls(trusted_certs=("target.pem",))
    )
    plain = Target(address=TcpAddress(host="127.0.0.1", port=9))
    listener = Listener(
        name="test",
        address=TcpAddress(host="127.0.0.1", port=0),
        certificates=(
            Certificate(chain="chain.pem", key="key.pem", key_password_file="password"),
            Certificate(cert="cert.pem", cacerts=("ca.pem",), key="key.pem"),
        ),
        client_auth=ClientAuth(mode="require", trusted_certs=("root.pem",), crls=("crl.pem",)),
        service=Service(targets=(plain,)),
        routes=(Route(service=Service(targets=(to_target, plain))),),
    )
    assert files_of(Config(nworkers=1, listeners=(listener, listener))) == (
        "chain.pem",
        "key.pem",
        "password",
        "cert.pem",
        "ca.pem",
        "root.pem",
        "crl.pem",
        "target.pem",
    )
