"""Tests for inside the guest (`harness.guest`), on a kernel that has TLS."""

from __future__ import annotations

import os

import pytest

from features.conftest import start, targets
from handfast.transport.kernel import Support
from handfast.transport.probe import probe

__all__ = ["start", "targets"]


@pytest.fixture(scope="session")
def support() -> Support:
    """What this kernel can do; without TLS there is nothing to be tested, and that is a failure."""
    found = probe()
    assert not found.missing, f"no kernel TLS on {os.uname().release}: {found.missing}"
    assert found.tx
    assert found.rx
    return found


@pytest.fixture(autouse=True)
def _kernel_has_tls(support: Support) -> None:
    """No test here may pass without."""
