from __future__ import annotations

import errno
import os
import pwd
import signal
import socket
from pathlib import Path

import pytest
import seccompy

from handfast.config import Isolation
from handfast.errors import ConfigError
from handfast.process import isolation, linux, privileges
from handfast.process.isolation import Identity, Role
from harness.forked import in_child, refusal
from harness.processes import Watched

NOBODY = pwd.getpwnam("nobody")


def entered(role: Role, identity: Identity) -> dict[str, str]:
    """Enter a role in a child, by way of the template if it is the acceptor's; give its status."""

    def work() -> dict[str, str]:
        with Path("/proc/self/status").open() as stream:
            isolation.enter(role, identity, os.getppid())
            lines = stream.read().splitlines()
        pairs = (each.partition(":") for each in lines)
        return {name: " ".join(rest.split()) for name, _, rest in pairs}

    return in_child(work)


def without(*names: str) -> None:
    """Have the kernel know these system calls no more, for this process."""
    forgetting = seccompy.Filter()
    for name in names:
        forgetting.errno(name, errno.ENOSYS)
    forgetting.load()


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY.pw_gid, NOBODY.pw_gid, NOBODY.pw_gid)
    os.setresuid(NOBODY.pw_uid, NOBODY.pw_uid, NOBODY.pw_uid)


@pytest.fixture(scope="module")
def identity() -> Identity:
    return isolation.prepare(Isolation(mode="required"))


def test_root_on_a_complete_system_lacks_nothing(identity: Identity) -> None:
    assert identity == Identity(
        account=privileges.Account(NOBODY.pw_uid, NOBODY.pw_gid), chroot="/run/handfast/empty"
    )


@pytest.mark.parametrize("role", Role)
def test_every_role_ends_up_without_privileges(role: Role, identity: Identity) -> None:
    found = entered(role, identity)

    assert found["Uid"].split() == [str(NOBODY.pw_uid)] * 4
    assert found["Groups"] == ""
    assert {found[each] for each in ("CapEff", "CapPrm", "CapBnd")} == {"0000000000000000"}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")


def test_an_acceptor_keeps_what_the_template_gave_up_and_loses_more(identity: Identity) -> None:
    def work() -> list[str]:
        isolation.enter(Role.TEMPLATE, identity, os.getppid())
        template = os.getpid()
        if acceptor := os.fork():
            os.waitpid(acceptor, 0)  # which has told
            os._exit(0)
        before = refusal(lambda: os.waitpid(-1, 0))
        isolation.enter(Role.ACCEPTOR, identity, template)
        after = refusal(lambda: os.waitpid(-1, 0))
        return [str(os.geteuid()), before, after, refusal(os.fork), refusal(socket.socket)]

    assert in_child(work) == [str(NOBODY.pw_uid), "ECHILD", "EPERM", "EPERM", "EPERM"]


def test_the_resolver_sees_the_files_and_a_relay_an_empty_directory(identity: Identity) -> None:
    def work(role: Role) -> str:
        isolation.enter(role, identity, os.getppid())
        return refusal(Path("/etc/hosts").read_bytes)

    assert in_child(lambda: work(Role.RESOLVER)) == ""
    assert in_child(lambda: work(Role.RELAY)) == "EPERM"


def test_without_a_filter_the_chroot_and_the_domain_still_hold(identity: Identity) -> None:
    unfiltered = Identity(account=identity.account, chroot=identity.chroot, seccomp=False)
    alone = Identity(
        account=identity.account, chroot=identity.chroot, seccomp=False, landlock=False
    )

    def work(what: Identity) -> list[str]:
        isolation.enter(Role.RELAY, what, os.getppid())
        return [
            refusal(Path("/etc/hosts").read_bytes),
            refusal(lambda: os.listdir("/")),  # noqa: PTH208 - as it is
            refusal(lambda: socket.create_server(("127.0.0.1", 0))),
        ]

    assert in_child(lambda: work(unfiltered)) == ["ENOENT", "EACCES", "EACCES"]
    assert in_child(lambda: work(alone)) == ["ENOENT", "", ""]


def test_a_child_that_changed_its_user_dies_with_its_parent(identity: Identity) -> None:
    reading, writing = os.pipe()
    never, _open = os.pipe()
    parent = os.fork()
    if not parent:
        own = os.getpid()
        if not os.fork():
            isolation.enter(Role.RELAY, identity, own)
            os.write(writing, str(os.getpid()).encode())
        os.read(never, 1)
        os._exit(0)
    os.close(writing)
    watched = Watched(int(os.read(reading, 16)))

    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)

    watched.wait()
    for descriptor in (reading, never, _open):
        os.close(descriptor)


def test_a_user_lacks_nothing_and_gets_all_that_needs_no_root() -> None:
    def work() -> list[object]:
        become_nobody()
        identity = isolation.prepare(Isolation(user="no such", chroot="/no such", mode="required"))
        isolation.enter(Role.RELAY, identity, os.getppid())
        opened = refusal(Path("/etc/hosts").read_bytes)
        return [identity == Identity(), os.geteuid(), opened, refusal(os.fork)]

    assert in_child(work) == [True, NOBODY.pw_uid, "EPERM", "EPERM"]


def test_what_the_kernel_lacks_is_named_and_the_rest_applies() -> None:
    def work() -> list[object]:
        without("landlock_create_ruleset", "seccomp")
        identity = isolation.prepare(Isolation())
        isolation.enter(Role.RELAY, identity, os.getppid())
        return [*(each.split()[0] for each in identity.missing), os.geteuid()]

    assert in_child(work) == ["seccomp", "landlock", NOBODY.pw_uid]


def test_what_a_container_takes_from_root_is_named_and_the_rest_applies() -> None:
    def work() -> list[object]:
        linux.drop_capabilities()
        identity = isolation.prepare(Isolation())
        isolation.enter(Role.RELAY, identity, os.getppid())
        return [*(each.split()[0] for each in identity.missing), refusal(os.fork)]

    assert in_child(work) == ["user", "chroot", "EPERM"]


def test_what_is_required_and_missing_is_an_error() -> None:
    def work() -> str:
        without("landlock_create_ruleset")
        with pytest.raises(ConfigError) as caught:
            isolation.prepare(Isolation(mode="required"))
        return str(caught.value)

    text = in_child(work)

    assert text.startswith("isolation: required, but this system lacks landlock")
    assert "set isolation: preferred" in text


def test_a_directory_that_is_named_is_used_or_refused(tmp_path: Path) -> None:
    given = isolation.prepare(Isolation(chroot=str(tmp_path)))

    assert given.chroot == str(tmp_path)
    with pytest.raises(ConfigError, match=r"chroot: .*missing"):
        isolation.prepare(Isolation(chroot=str(tmp_path / "missing")))


def test_children_inherit_the_filters_and_assemble_none(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = isolation.prepare(Isolation(mode="required"))
    monkeypatch.delattr("handfast.process.seccomp.build")

    assert entered(Role.RELAY, identity)["Seccomp"] == "2"
