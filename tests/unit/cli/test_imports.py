from __future__ import annotations

import subprocess
import sys

import pytest

ONLY_FOR_SOME = ("asyncio", "ssl", "h11", "importlib.metadata", "handfast.process.demo")


def imported(by: str) -> set[str]:
    program = f"import {by}, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ONLY_FOR_SOME)
def test_what_few_have_is_in_no_other_installation(name: str) -> None:
    assert name not in imported("handfast.cli.serve")


def test_a_command_line_brings_no_library_for_tls_or_yaml_before_its_command_is_known() -> None:
    libraries = {"cryptography", "OpenSSL", "msgspec", "yaml", "seccompy"}
    assert not imported("handfast.cli") & libraries
