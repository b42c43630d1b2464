"""What the processes of a running handfast cannot do, proved from inside each, and do not know."""

from __future__ import annotations

import base64
import errno
import os
import pwd
import re
import secrets
import socket
import ssl
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import pytest
import seccompy
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from harness.clients import connect, echoes, trusting
from harness.forked import in_child
from harness.injection import Stopped, memory_has, stopped
from harness.instance import Instance
from harness.pki import Key
from harness.processes import run_handfast
from harness.secrets import connect_and_tell
from harness.streams import memory_client

if TYPE_CHECKING:
    from conftest import Certificates, Serve
    from harness.backends import Backend

AT_FDCWD: Final = -100
LOOPBACK: Final = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton("127.0.0.1"))
PASSWD: Final = b"/etc/passwd\0"
NOBODY: Final = pwd.getpwnam("nobody")
METRICS: Final = "metrics: 127.0.0.1:0"

SANDBOXED: Final = ("template", "acceptor-1", "relay-1", "resolver", "monitor")

Call: TypeAlias = tuple[str, *tuple[int | bytes, ...]]
Calls: TypeAlias = dict[str, Call]

NOBODY_MAY: Final[Calls] = {
    "run a program": ("execve", b"/bin/true\0", 0, 0),
    "run an open file": ("execveat", 0, b"\0", 0, 0, 0x1000),
    "write a file": ("openat", AT_FDCWD, PASSWD, os.O_WRONLY),
    "remove a file": ("unlinkat", AT_FDCWD, PASSWD, 0),
    "open a file in a way that a filter cannot see": ("openat2", AT_FDCWD, PASSWD, bytes(24), 24),
    "open a file by its handle": ("open_by_handle_at", AT_FDCWD, bytes(16), 0),
    "listen": ("listen", 0, 1),
    "look into another process": ("ptrace", 16, 1, 0, 0),
    "read the memory of another process": ("process_vm_readv", 1, 0, 0, 0, 0, 0),
    "take a descriptor of another process": ("pidfd_getfd", 0, 0, 0),
    "signal another process": ("kill", 1, 0),
    "become root": ("setuid", 0),
    "become root's group": ("setgid", 0),
    "be dumped again": ("prctl", 4, 1, 0, 0, 0),
    "leave the root directory": ("chroot", b"/\0"),
    "mount": ("mount", b"none\0", b"/\0", b"tmpfs\0", 0, 0),
    "be root of a namespace": ("unshare", 0x10000000),
    "enter a namespace": ("setns", 0, 0),
    "make memory that is written and run": ("mmap", 0, 4096, 7, 0x22, -1, 0),
    "run the memory that it writes to": ("mprotect", 0, 4096, 7),
    "queue system calls past the filter": ("io_uring_setup", 1, bytes(120)),
    "load a program into the kernel": ("bpf", 0, bytes(16), 16),
    "watch the kernel": ("perf_event_open", bytes(128), 0, -1, -1, 0),
    "use the kernel's keys": ("keyctl", 0, -1, 0, 0, 0),
    "load a kernel module": ("finit_module", 0, b"\0", 0),
    "restart the machine": ("reboot", 0xFEE1DEAD, 672274793, 0, 0),
    "open a raw socket": ("socket", socket.AF_INET, socket.SOCK_RAW, 1),
    "open a packet socket": ("socket", socket.AF_PACKET, socket.SOCK_RAW, 0),
}  # fmt: skip

READ: Final[Calls] = {"read a file": ("openat", AT_FDCWD, PASSWD, os.O_RDONLY)}
LIST: Final[Calls] = {
    "list a directory": ("openat", AT_FDCWD, b"/\0", os.O_RDONLY | os.O_DIRECTORY)
}
DIAL: Final[Calls] = {
    "make a socket": ("socket", socket.AF_INET, socket.SOCK_STREAM, 0),
    "connect": ("connect", 0, LOOPBACK, len(LOOPBACK)),
}
BIND: Final[Calls] = {"bind": ("bind", 0, LOOPBACK, len(LOOPBACK))}
OTHER_SOCKETS: Final[Calls] = {
    "make a datagram socket": ("socket", socket.AF_INET, socket.SOCK_DGRAM, 0),
    "make a Unix socket": ("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0),
}
ACCEPT: Final[Calls] = {"accept": ("accept4", 0, 0, 0, 0)}
FORK: Final[Calls] = {"fork": ("clone", 17, 0, 0, 0, 0)}
RUNNABLE: Final[Calls] = {"make memory that is run": ("mmap", 0, 4096, 5, 0x22, -1, 0)}

DENIED: Final[dict[str, Calls]] = {
    "template": READ | LIST | DIAL | BIND | OTHER_SOCKETS | RUNNABLE,
    "acceptor-1": READ | LIST | DIAL | BIND | OTHER_SOCKETS | FORK | RUNNABLE,
    "relay-1": READ | LIST | BIND | OTHER_SOCKETS | ACCEPT | FORK | RUNNABLE,
    "resolver": ACCEPT | FORK,
    "monitor": READ | LIST | DIAL | BIND | OTHER_SOCKETS | FORK | RUNNABLE,
}


def pid_of(running: Instance, name: str) -> int:
    return running.pids()[name]


def status(pid: int) -> dict[str, str]:
    """Read what the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        name: " ".join(rest.split()) for name, _, rest in (each.partition(":") for each in lines)
    }


def answer(process: Stopped, call: Call) -> str:
    """Make a call; give the name of the error, or `done`."""
    result = process.call(*call)
    return errno.errorcode[-result] if result < 0 else "done"


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    return trusting(certificates.ca)


@pytest.mark.parametrize("name", SANDBOXED)
def test_a_process_is_nobody_with_nothing(serve: Serve, backend: Backend, name: str) -> None:
    running = serve(backend.named, extra=METRICS, nworkers=1)

    pid = pid_of(running, name)
    found = status(pid)

    assert found["Uid"].split() == [str(NOBODY.pw_uid)] * 4
    assert found["Gid"].split() == [str(NOBODY.pw_gid)] * 4
    assert found["Groups"] == ""
    sets = {found[each] for each in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert sets == {"0000000000000000"}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0  # as of all that is not dumpable
    root = "/" if name == "resolver" else "/run/handfast/empty"
    assert str(Path(f"/proc/{pid}/root").readlink()) == root


@pytest.mark.parametrize("name", SANDBOXED)
def test_the_kernel_refuses_what_a_process_is_not_for(
    serve: Serve, backend: Backend, context: ssl.SSLContext, name: str
) -> None:
    running = serve(backend.named, extra=METRICS, nworkers=1)
    calls = NOBODY_MAY | DENIED[name]

    with stopped(pid_of(running, name)) as process:
        found = {what: answer(process, call) for what, call in calls.items()}

    assert found == dict.fromkeys(calls, "EPERM")
    with connect(running.port(), context) as client:
        assert echoes(client)  # and it goes on serving


def test_a_relay_may_dial_but_its_socket_cannot_serve(serve: Serve, backend: Backend) -> None:
    running = serve(backend.target, nworkers=1)
    there = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", backend.port, b"\x7f\0\0\1")

    with stopped(pid_of(running, "relay-1")) as process:
        made = process.call("socket", socket.AF_INET, socket.SOCK_STREAM, 0)
        connected = process.call("connect", made, there, len(there))
        others = [
            answer(process, ("listen", made, 1)),
            answer(process, ("bind", made, LOOPBACK, len(LOOPBACK))),
        ]
        process.call("close", made)

    assert made >= 0
    assert connected == 0
    assert others == ["EPERM", "EPERM"]


def test_the_resolver_reads_and_does_not_write(serve: Serve, backend: Backend) -> None:
    running = serve(backend.named)

    with stopped(pid_of(running, "resolver")) as process:
        read = process.call(*READ["read a file"])
        process.call("close", read)
        found = {
            flags: answer(process, ("openat", AT_FDCWD, PASSWD, flags))
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_APPEND | os.O_WRONLY)
        }

    assert read >= 0
    assert set(found.values()) == {"EPERM"}


def listening_inodes() -> set[str]:
    """Give the sockets of this machine that listen for TCP."""
    lines = [
        line.split()
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
    ]
    return {f"socket:[{each[9]}]" for each in lines if each[3] == "0A"}


def test_only_acceptors_and_who_makes_them_hold_the_listening_socket(
    serve: Serve, backend: Backend
) -> None:
    running = serve(backend.target, nworkers=1)
    listening = listening_inodes()

    holders = {
        name
        for name, pid in running.pids().items()
        if any(str(each.readlink()) in listening for each in Path(f"/proc/{pid}/fd").iterdir())
    }

    assert holders == {"supervisor", "template", "acceptor-1"}


def piece_of_pem(der: bytes, secret: bytes) -> bytes:
    """Give the longest run of base64 on one line of PEM that is nothing but the secret."""
    start = der.index(secret)
    first, last = start + -start % 3, (start + len(secret)) // 3 * 3
    lines = range(0, len(der), 48)
    pieces = (der[max(first, line) : min(last, line + 48)] for line in lines)
    return base64.b64encode(max(pieces, key=len))


def forms_of(key: Key) -> set[bytes]:
    """Give the shapes in which a private key could lie in memory."""
    numbers = key.private_numbers()
    if isinstance(numbers, ec.EllipticCurvePrivateNumbers):
        values = [numbers.private_value]
    else:
        values = [numbers.d, numbers.p, numbers.q]
    size = key.key_size // 8 // (1 if len(values) == 1 else 2)
    forms: set[bytes] = set()
    for value in values:
        written = value.to_bytes(max(size, (value.bit_length() + 7) // 8), "big")  # as in DER, too
        forms |= {written, written[::-1]}  # OpenSSL computes with the little end first
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
            der = key.private_bytes(Encoding.DER, form, NoEncryption())
            forms.add(piece_of_pem(der, written))
    return forms


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_a_relay_does_not_have_the_private_key(
    serve: Serve, backend: Backend, certificates: Certificates, context: ssl.SSLContext, kind: str
) -> None:
    identity = certificates.server if kind == "ecdsa" else certificates.rsa_server
    chain, path = (
        (certificates.chain, certificates.key)
        if kind == "ecdsa"
        else (certificates.rsa_chain, certificates.rsa_key)
    )
    forms = forms_of(identity.key)
    running = serve(backend.named, nworkers=1, chain=chain, key=path, extra=METRICS)
    pids = running.pids()

    with connect(running.port(), context) as client:
        assert echoes(client)
        acceptor = memory_has(pids["acceptor-1"], *forms)
        others = {
            name: memory_has(pids[name], *forms)
            for name in ("relay-1", "resolver", "monitor", "supervisor")
        }

    assert acceptor  # else this would prove nothing
    assert others == {"relay-1": set(), "resolver": set(), "monitor": set(), "supervisor": set()}


def test_an_acceptor_does_not_have_what_is_relayed(
    serve: Serve, backend: Backend, certificates: Certificates
) -> None:
    running = serve(backend.target, nworkers=1)
    pids = running.pids()
    early, late = (secrets.token_bytes(48) for _ in range(2))

    with memory_client(running.port(), certificates.ca) as client:
        # The first data travels with the client's Finished: the acceptor reads both.
        client.handshake(flush=False)
        client.write(early)
        client.flush()
        echoed = client.read_exactly(len(early))
        client.write(late * 2000)
        client.flush()
        echoed += client.read_exactly(len(late) * 2000)
        relay = memory_has(pids["relay-1"], early, late)
        others = [memory_has(pids[name], early, late) for name in ("acceptor-1", "template")]

    assert echoed == early + late * 2000
    assert late in relay  # else this would prove nothing
    assert others == [set(), set()]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_the_secrets_of_a_session_leave_the_memory_of_the_relay_with_it(
    serve: Serve, backend: Backend, version: str
) -> None:
    running = serve(backend.target, nworkers=1)
    relay = running.pids()["relay-1"]
    with socket.create_connection(("127.0.0.1", running.port()), 20) as sock:
        sock.settimeout(None)
        client, told = connect_and_tell(sock, version)
        client.sendall(b"there and back")
        assert client.recv(100) == b"there and back"
        during = memory_has(relay, *told.secrets)
        client.shutdown()
    running.wait("proxy", subevent="client_disconnect")

    assert during  # else this would prove nothing
    assert memory_has(relay, *told.secrets, *told.keys) == set()


def forget_landlock() -> None:
    """Make this process and its children live on a kernel without Landlock."""
    forgetting = seccompy.Filter()
    forgetting.errno("landlock_create_ruleset", errno.ENOSYS)
    forgetting.load()


def test_a_kernel_without_a_feature_gets_one_warning_and_the_rest(
    serve: Serve, backend: Backend
) -> None:
    def work() -> list[object]:
        forget_landlock()
        running = serve(backend.target, nworkers=1)
        warnings = [each["error_msg"] for each in running.events(level="WARN")]
        seccomp = status(pid_of(running, "relay-1"))["Seccomp"]
        running.stop()
        return [*warnings, seccomp]

    first, *rest = in_child(work)

    assert "landlock" in str(first)
    assert rest == ["2"]


def test_what_is_required_and_missing_ends_the_start(
    serve: Serve, backend: Backend, tmp_path: Path, certificates: Certificates
) -> None:
    config = tmp_path / "required.yaml"
    config.write_text(
        f"isolation: required\ncontrol: {tmp_path}/c.sock\nlisteners:\n"
        f"  - listen: '127.0.0.1:0'\n    target: '{backend.target}'\n    certificates:\n"
        f"      - chain: {certificates.chain}\n        key: {certificates.key}\n"
    )

    def work() -> list[object]:
        forget_landlock()
        done = run_handfast("serve", "-c", str(config))
        return [done.returncode, done.stderr]

    code, errors = in_child(work)

    assert code == 2
    assert "isolation: required, but this system lacks landlock" in str(errors)
