from __future__ import annotations

import mmap
import os
import pwd
import resource
from pathlib import Path

import pytest

from handfast.errors import ConfigError
from handfast.process import linux, privileges
from handfast.process.privileges import Account
from harness.forked import in_child, refusal

NOBODY = Account(pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid)


def status() -> dict[str, str]:
    """Read what the kernel says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: " ".join(rest.split()) for name, _, rest in (each.partition(":") for each in lines)
    }


def test_dropping_leaves_no_id_of_roots_and_no_capability() -> None:
    def work() -> dict[str, str]:
        privileges.drop(NOBODY, "")
        return status()

    found = in_child(work)

    uid, gid = NOBODY.uid, NOBODY.gid
    assert found["Uid"] == f"{uid} {uid} {uid} {uid}"
    assert found["Gid"] == f"{gid} {gid} {gid} {gid}"
    assert found["Groups"] == ""
    sets = {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert sets == {"0000000000000000"}


def test_there_is_no_way_back() -> None:
    def work() -> list[str]:
        privileges.drop(NOBODY, "")
        return [
            refusal(lambda: os.setresuid(0, 0, 0)),
            refusal(lambda: os.setgroups([0])),
            refusal(lambda: os.chroot("/")),
            refusal(Path("/etc/shadow").read_bytes),
        ]

    assert in_child(work) == ["EPERM", "EPERM", "EPERM", "EACCES"]


def test_the_root_directory_is_the_one_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "only").touch()

    def work() -> list[str]:
        privileges.drop(None, str(tmp_path))
        return [os.getcwd(), *os.listdir("/"), *os.listdir("/..")]  # noqa: PTH109, PTH208 - as it is

    assert in_child(work) == ["/", "only", "only"]


def test_dropping_again_or_as_a_user_is_no_error() -> None:
    def work() -> dict[str, str]:
        privileges.drop(NOBODY, "")
        privileges.drop(None, "")
        return status()

    assert in_child(work)["CapEff"] == "0000000000000000"


def test_root_without_its_capabilities_cannot_switch() -> None:
    def work() -> list[bool]:
        before = privileges.may_switch()
        linux.drop_capabilities()
        return [before, privileges.may_switch(), privileges.holds(linux.CAP_SYS_CHROOT)]

    assert in_child(work) == [True, False, False]


def test_a_process_without_dumps_is_closed_to_its_own_user() -> None:
    def work() -> list[object]:
        privileges.drop(NOBODY, "")
        privileges.drop_dumps()
        mine = refusal(Path("/proc/self/mem").read_bytes)
        return [mine, *resource.getrlimit(resource.RLIMIT_CORE), status()["NoNewPrivs"]]

    assert in_child(work) == ["EACCES", 0, 0, "1"]


def test_memory_is_locked_from_its_first_use_on() -> None:
    def work() -> list[int]:
        linux.lock_memory()
        before = int(status()["VmLck"].removesuffix(" kB"))
        data = mmap.mmap(-1, 8 << 20)  # not from a heap that may have room already
        return [before, int(status()["VmLck"].removesuffix(" kB")) - before, len(data) >> 10]

    before, grown, size = in_child(work)

    assert before > 0
    assert grown >= size


def test_memory_may_be_locked_only_where_there_is_no_limit() -> None:
    def work() -> list[bool]:
        privileges.allow_locked_memory()
        soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        unlimited = privileges.may_lock_memory()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, hard))
        return [unlimited == (soft == resource.RLIM_INFINITY), privileges.may_lock_memory()]

    assert in_child(work) == [True, False]


def test_a_user_brings_its_own_group_unless_another_is_named() -> None:
    own = privileges.account("nobody", "")
    other = privileges.account("nobody", "daemon")

    assert own == NOBODY
    assert other.uid == NOBODY.uid
    assert other.gid != NOBODY.gid


def test_an_account_that_is_not_there_or_is_roots_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"no user 'no such'.*useradd"):
        privileges.account("no such", "")
    with pytest.raises(ConfigError, match=r"no group 'no such'.*groupadd"):
        privileges.account("nobody", "no such")
    with pytest.raises(ConfigError, match="cannot be root's"):
        privileges.account("root", "")
    with pytest.raises(ConfigError, match="cannot be root's"):
        privileges.account("nobody", "root")


def test_a_root_directory_has_to_be_there_and_roots_alone(tmp_path: Path) -> None:
    fit, shared, foreign, link = (tmp_path / name for name in ("fit", "shared", "foreign", "link"))
    for each in (fit, shared, foreign):
        each.mkdir(mode=0o755)
    shared.chmod(0o775)
    os.chown(foreign, NOBODY.uid, NOBODY.gid)
    link.symlink_to(fit)

    privileges.check_root_directory(fit)
    with pytest.raises(ConfigError, match=r"shared can be changed by others.*chmod 0755"):
        privileges.check_root_directory(shared)
    with pytest.raises(ConfigError, match="foreign can be changed by others"):
        privileges.check_root_directory(foreign)
    (shared / "below").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="shared can be changed by others"):
        privileges.check_root_directory(shared / "below")
    with pytest.raises(ConfigError, match="link is not a directory"):
        privileges.check_root_directory(link)
    with pytest.raises(ConfigError, match=r"missing: No such file.*install -d"):
        privileges.check_root_directory(tmp_path / "missing")


def test_the_default_root_directory_is_made_and_has_to_be_empty(tmp_path: Path) -> None:
    directory = tmp_path / "handfast" / "empty"

    privileges.make_empty_directory(directory)
    privileges.make_empty_directory(directory)
    (directory / "something").touch()

    with pytest.raises(ConfigError, match="is not empty"):
        privileges.make_empty_directory(directory)
