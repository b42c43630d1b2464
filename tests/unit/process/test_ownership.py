from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from handfast.errors import ConfigError
from handfast.process.ownership import owner_of, user_id

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")


def bind(path: Path) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(path))
    return str(path)


@needs_root
def test_a_socket_that_only_its_owner_could_have_put_there_is_the_owners() -> None:
    directory = Path("/run/handfast-test-ownership")
    directory.mkdir(mode=0o755)
    try:
        path = bind(directory / "app.sock")
        before = owner_of(path)
        for each in (path, directory):
            os.chown(each, 1234, 1234)
        after = owner_of(path)
        directory.chmod(0o775)
        group = owner_of(path)
        os.chown(directory, 4321, 1234)
        directory.chmod(0o755)
        other = owner_of(path)
    finally:
        Path(path).unlink()
        directory.rmdir()

    assert (before, after) == ((0, ""), (1234, ""))
    assert group == (-1, f"others can write to {directory}; name the `user` of the target")
    assert other == group


def test_in_a_directory_that_anybody_can_write_to_a_socket_is_nobodys(tmp_path: Path) -> None:
    """The sticky bit does not help: somebody may have been there first."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)

    assert owner_of(bind(shared / "app.sock")) == (
        -1,
        f"others can write to {shared}; name the `user` of the target",
    )


def test_what_is_above_counts_too(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    inner = shared / "inner"
    inner.mkdir(parents=True, mode=0o700)
    shared.chmod(0o777)

    assert owner_of(bind(inner / "app.sock")) == (
        -1,
        f"others can write to {shared}; name the `user` of the target",
    )


def test_links_are_not_followed_to_a_verdict(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    bind(real / "app.sock")

    assert owner_of(str(link / "app.sock")) == (
        -1,
        f"{link} is a symbolic link; write the path without it",
    )


def test_what_is_not_there_is_nobodys(tmp_path: Path) -> None:
    path = str(tmp_path / "app.sock")

    assert owner_of(path) == (-1, f"{path}: No such file or directory")


def test_a_user_is_found_by_name_or_number() -> None:
    assert user_id("root") == 0
    assert user_id("1234") == 1234
    with pytest.raises(ConfigError, match="there is no user 'no such user' here; name another"):
        user_id("no such user")
