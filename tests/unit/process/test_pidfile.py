from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from handfast.errors import ConfigError, HandfastError
from handfast.process.pidfile import PidFile


def test_it_names_the_process_to_everybody_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    mask = os.umask(0o077)
    held = PidFile(str(path))
    os.umask(mask)
    assert path.read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    held.close()
    held.close()
    assert not path.exists()


def test_a_second_one_is_refused_and_told_who_runs(tmp_path: Path) -> None:
    path = str(tmp_path / "pid")
    held = PidFile(path)
    with pytest.raises(HandfastError, match=f"already, as process {os.getpid()}; stop it with"):
        PidFile(path)
    assert Path(path).read_text() == f"{os.getpid()}\n"
    held.close()


def test_one_that_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    pid = os.fork()
    if pid == 0:
        PidFile(str(path))
        os._exit(0)  # as abrupt as kill -9: nothing is cleaned up
    os.waitpid(pid, 0)
    assert path.read_text() == f"{pid}\n"

    held = PidFile(str(path))

    assert path.read_text() == f"{os.getpid()}\n"
    held.close()


def test_what_stands_in_an_old_file_does_not_stay_behind_a_shorter_pid(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("12345678901234567890\nmore\n")
    held = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    held.close()


def test_a_file_that_took_its_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    held = PidFile(str(path))
    path.unlink()
    path.write_text("another's")
    held.close()
    assert path.read_text() == "another's"


def test_a_file_that_is_removed_while_it_is_held_is_not_mistaken_for_ours(tmp_path: Path) -> None:
    path = str(tmp_path / "pid")
    first = PidFile(path)
    Path(path).unlink()
    second = PidFile(path)
    first.close()
    with pytest.raises(HandfastError, match="already"):
        PidFile(path)
    second.close()


@pytest.mark.parametrize("plant", ["symlink", "hard link", "fifo", "directory"])
def test_nothing_that_somebody_planted_is_written_to(tmp_path: Path, plant: str) -> None:
    path, precious = tmp_path / "pid", tmp_path / "precious"
    precious.write_text("data")
    match plant:
        case "symlink":
            path.symlink_to(precious)
        case "hard link":
            path.hardlink_to(precious)
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, to compare
    with pytest.raises(ConfigError, match="cannot write the pidfile"):
        PidFile(str(path))
    assert precious.read_text() == "data"
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_directory_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing/pid: cannot write the pidfile \(No such file"):
        PidFile(str(tmp_path / "missing" / "pid"))
