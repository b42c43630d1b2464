from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import seccompy
from seccompy import syscalls

from handfast.process import isolation, seccomp
from handfast.process.isolation import PERMITS, Role
from handfast.transport.kernel import SOL_TLS
from handfast.transport.pipes import Pipe
from harness.forked import in_child, refusal

libc = ctypes.CDLL(None, use_errno=True)
INSIDE = Path(__file__)


def system_call(name: str | int, *arguments: int) -> None:
    number = seccompy.syscall_nr(name)
    if libc.syscall(number, *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "")


def execute() -> None:
    os.execv("/bin/true", ["true"])  # noqa: S606 - it is refused


def under(permits: tuple[seccomp.Permit, ...], **attempts: Callable[[], object]) -> dict[str, str]:
    """Try things in a child that has only these permits; give how each was refused."""

    def work() -> dict[str, str]:
        seccomp.build(permits).load()
        return {name: refusal(attempt) for name, attempt in attempts.items()}

    return in_child(work)


def test_what_is_not_permitted_fails_and_the_process_lives() -> None:
    found = under(
        seccomp.BASE,
        open=INSIDE.read_bytes,
        socket=socket.socket,
        fork=os.fork,
        run=execute,
        unshare=lambda: system_call("unshare", 0x10000000),
        look=lambda: system_call("ptrace", 16, os.getppid()),
        kill=lambda: os.kill(os.getppid(), 0),
        new=lambda: system_call(100_000),
    )

    assert set(found.values()) == {"EPERM"}


def test_every_name_in_the_permits_is_one_of_linux() -> None:
    known = {*syscalls.X86_64_SYSCALLS, *syscalls.AARCH64_SYSCALLS}

    named = {
        permit if isinstance(permit, str) else permit[0]
        for permits in PERMITS.values()
        for permit in permits.calls
    }

    assert named <= known


def test_clone3_is_missing_rather_than_forbidden_so_that_libc_falls_back() -> None:
    found = under(seccomp.BASE, clone3=lambda: system_call("clone3", 0, 0))

    assert found == {"clone3": "ENOSYS"}


def test_memory_can_be_written_or_run_but_run_only_by_who_loads_modules() -> None:
    attempts: dict[str, Callable[[], object]] = {
        "data": lambda: mmap.mmap(-1, 4096),
        "code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
        "both": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC),
    }

    base = under(seccomp.BASE, **attempts)
    resolver = under(PERMITS[Role.RESOLVER].calls, **attempts)

    assert base == {"data": "", "code": "EPERM", "both": "EPERM"}
    assert resolver == {"data": "", "code": "", "both": "EPERM"}


def test_a_relay_has_sockets_for_tcp_and_no_others() -> None:
    found = under(
        PERMITS[Role.RELAY].calls,
        tcp=socket.socket,
        tcp6=lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK),
        udp=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        raw=lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        sctp=lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
        multipath=lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262),
        unix=lambda: socket.socket(socket.AF_UNIX),
        netlink=lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        vsock=lambda: socket.socket(socket.AF_VSOCK),
        packet=lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        pair=socket.socketpair,
    )

    assert found.pop("tcp") == found.pop("tcp6") == ""
    assert set(found.values()) == {"EPERM"}


def test_a_relay_gives_keys_to_the_kernel_and_nobody_has_them_back() -> None:
    """Which needs a connected socket to succeed: ENOPROTOOPT and ENOTCONN come from behind it."""

    def attempts(name: str) -> Callable[[], object]:
        def attempt() -> object:
            ours, _ = pair
            if name == "give":
                return ours.setsockopt(SOL_TLS, 1, bytes(40))
            if name == "ask":
                return ours.getsockopt(SOL_TLS, 1, 40)
            if name == "ask slyly":  # the kernel takes the level as an int, the filter does not
                system_call("getsockopt", ours.fileno(), SOL_TLS | 1 << 32, 1, 0, 0)
            if name == "look":
                return ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return Pipe()

        return attempt

    pair = socket.socketpair()
    with pair[0], pair[1]:
        names = ("give", "ask", "ask slyly", "look", "splice")
        relay, acceptor, resolver = (
            under(PERMITS[role].calls, **{name: attempts(name) for name in names})
            for role in (Role.RELAY, Role.ACCEPTOR, Role.RESOLVER)
        )

    assert relay["give"] != "EPERM"
    assert relay["ask"] == relay["ask slyly"] == "EPERM"
    assert (relay["look"], relay["splice"]) == ("", "")
    refused = dict.fromkeys(("give", "ask", "ask slyly", "splice"), "EPERM")
    assert acceptor == {**refused, "look": ""}
    assert resolver["ask"] == resolver["ask slyly"] == "EPERM"


def test_a_relay_connects_but_neither_binds_nor_listens_nor_accepts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = under(
            PERMITS[Role.RELAY].calls,
            connect=lambda: socket.create_connection(server.getsockname(), 5),
            bind=lambda: socket.socket().bind(("127.0.0.1", 0)),
            listen=lambda: server.listen(1),
            accept=server.accept,
        )

    assert found == {"connect": "", "bind": "EPERM", "listen": "EPERM", "accept": "EPERM"}


def test_an_acceptor_accepts_and_makes_no_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())

        found = under(
            PERMITS[Role.ACCEPTOR].calls,
            accept=server.accept,
            socket=socket.socket,
            connect=lambda: client.connect(server.getsockname()),
            listen=lambda: server.listen(1),
        )

    assert found == {"accept": "", "socket": "EPERM", "connect": "EPERM", "listen": "EPERM"}


def test_the_template_forks_processes_but_neither_threads_nor_namespaces() -> None:
    def fork() -> None:
        if not (pid := os.fork()):
            os._exit(0)
        os.waitpid(pid, 0)

    found = under(
        PERMITS[Role.TEMPLATE].calls,
        fork=fork,
        namespace=lambda: system_call("clone", 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0),
        unshare=lambda: system_call("unshare", 0x10000000),
        nice=lambda: os.nice(1),
        open=INSIDE.read_bytes,
    )

    assert found == {
        "fork": "", "namespace": "EPERM", "unshare": "EPERM", "nice": "", "open": "EPERM",
    }  # fmt: skip


def test_a_filter_of_a_child_takes_away_and_cannot_give_back() -> None:
    def work() -> list[str]:
        seccomp.build(PERMITS[Role.TEMPLATE].calls).load()
        before = refusal(lambda: os.waitpid(-1, 0))
        seccomp.build(PERMITS[Role.ACCEPTOR].calls + seccomp.DIAL).load()
        return [before, refusal(lambda: os.waitpid(-1, 0)), refusal(socket.socket)]

    assert in_child(work) == ["ECHILD", "EPERM", "EPERM"]


def test_the_resolver_reads_files_asks_servers_and_has_threads() -> None:
    def threads() -> None:
        thread = threading.Thread(target=socket.getaddrinfo, args=("localhost", 80))
        thread.start()
        thread.join()

    def write() -> None:
        os.open(INSIDE, os.O_WRONLY)

    found = under(
        PERMITS[Role.RESOLVER].calls,
        read=INSIDE.read_bytes,
        write=write,
        create=lambda: os.open("/tmp/x", os.O_CREAT | os.O_RDONLY),  # noqa: S108 - it fails
        remove=INSIDE.unlink,
        threads=threads,
        listen=lambda: socket.socket().listen(),
        run=execute,
    )

    assert found.pop("read") == found.pop("threads") == ""
    assert set(found.values()) == {"EPERM"}


def test_only_the_resolver_connects_to_the_sockets_of_applications() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(b"\0handfast-test-seccomp-" + str(os.getpid()).encode())
        server.listen()

        def connect() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(server.getsockname())

        found = {
            role: under(PERMITS[role].calls, connect=connect)["connect"]
            for role in (Role.RESOLVER, Role.RELAY, Role.ACCEPTOR, Role.MONITOR)
        }
        listens = under(PERMITS[Role.RESOLVER].calls, listen=server.listen)

    assert found.pop(Role.RESOLVER) == ""
    assert set(found.values()) == {"EPERM"}
    assert listens == {"listen": "EPERM"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="no other architecture's numbers here")
def test_the_numbers_of_another_architecture_kill() -> None:
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid of i386); int 0x80; ret
    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    pid = os.fork()
    if not pid:
        seccomp.build(seccomp.BASE).load()
        call()
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGSYS


def test_the_numbers_of_x32_are_refused() -> None:
    x32_getpid = 0x40000000 | 39

    assert under(seccomp.BASE, x32=lambda: system_call(x32_getpid)) == {"x32": "EPERM"}


def test_a_system_that_refuses_filters_is_one_without() -> None:
    def work() -> bool:
        refusing = seccompy.Filter()
        refusing.errno("seccomp", errno.EPERM)
        refusing.load()
        return seccomp.is_supported()

    assert seccomp.is_supported()
    assert not in_child(work)
    assert isolation.PERMITS.keys() == set(Role)
