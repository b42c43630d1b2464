"""`kernel-tls` on a kernel that has none; tests/kernel has what it does on one that has."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest
import seccompy
from seccompy import ArgCmp, CmpOp

from handfast.transport.kernel import TCP_ULP
from harness.clients import connect, echoes
from harness.forked import in_child
from harness.front import write
from harness.processes import run_handfast

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from conftest import Certificates
    from features.conftest import Start, Targets


def forget_kernel_tls() -> None:
    """Make this process and its children live on a kernel without the module."""
    forgetting = seccompy.Filter()
    conditions = (
        ArgCmp(1, CmpOp.EQ, socket.IPPROTO_TCP),
        ArgCmp(2, CmpOp.EQ, TCP_ULP),
    )
    forgetting.errno("setsockopt", errno.ENOENT, args=conditions)
    forgetting.load()


def test_auto_serves_from_user_space(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    target = targets.echo()

    def work() -> dict[str, Any]:
        forget_kernel_tls()
        front = start({"target": target, "kernel_tls": "auto"})
        with connect(front.port(), context) as client:
            answered = echoes(client)
        told = front.wait("kernel_tls")
        home = front.wait("proxy", subevent="client_connect")["transport"]
        front.stop()
        return {"answered": answered, "told": told, "home": home}

    found = in_child(work)

    assert found["answered"]
    assert found["home"] == "user"
    assert found["told"]["error_msg"] == "this kernel has no TLS"
    assert found["told"]["error_desc"] == "No such file or directory"
    assert found["told"]["level"] == "INFO"


def test_on_does_not_start_and_says_what_to_do(
    tmp_path: Path, targets: Targets, certificates: Certificates
) -> None:
    config = tmp_path / "on.yaml"
    write(
        config,
        {
            "control": str(tmp_path / "control.sock"),
            "listeners": [
                {
                    "listen": "127.0.0.1:0",
                    "name": "web",
                    "kernel-tls": "on",
                    "target": targets.echo(),
                    "certificates": [
                        {"chain": str(certificates.chain), "key": str(certificates.key)}
                    ],
                }
            ],
        },
    )

    def work() -> list[Any]:
        forget_kernel_tls()
        done = run_handfast("serve", "-c", str(config))
        return [done.returncode, done.stderr]

    code, errors = in_child(work)

    assert code == 2
    assert errors.startswith("handfast: ")
    assert "listener web: kernel-tls is on, but this kernel has no TLS" in errors
    assert "load its module (modprobe tls), or set it to auto" in errors
    assert "Traceback" not in errors


def test_a_reload_that_wants_what_there_is_not_changes_nothing(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    target = targets.echo()

    def work() -> list[Any]:
        forget_kernel_tls()
        front = start({"target": target})
        front.listener["kernel-tls"] = "on"
        done = front.reload()
        with connect(front.port(), context) as client:
            answered = echoes(client)
        front.stop()
        return [done.returncode, done.stderr, answered]

    code, errors, answered = in_child(work)

    assert code == 2
    assert "kernel-tls is on, but this kernel has no TLS" in errors
    assert answered


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_unix_socket_has_no_kernel_tls(
    tmp_path: Path, certificates: Certificates, mode: str
) -> None:
    config = tmp_path / "unix.yaml"
    config.write_text(
        f"listeners:\n  - listen: unix:{tmp_path}/front.sock\n    kernel-tls: {mode}\n"
        f"    target: tcp://127.0.0.1:1\n    certificates:\n"
        f"      - chain: {certificates.chain}\n        key: {certificates.key}\n"
    )

    done = run_handfast("check", "-c", str(config))

    assert done.returncode == 2
    assert "listeners[0].kernel-tls: is for TCP" in done.stderr
