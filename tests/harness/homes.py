"""Where sessions live in a run of the tests: in user space or, with TEST_KERNEL_TLS=on, the kernel.

The same tests hold for both. `harness.guest` runs them for the kernel.
"""

from __future__ import annotations

import os
from typing import Final

import pytest

from handfast.transport.probe import probe

KERNEL_TLS: Final = os.environ.get("TEST_KERNEL_TLS", "off")
IN_GUEST: Final = "TEST_IN_GUEST" in os.environ
IN_KERNEL: Final = KERNEL_TLS == "on"


def sized(count: int, divisor: int = 10) -> int:
    """Give how many bytes of `count` are enough here: in the guest, a system call costs 50 us."""
    return count // divisor if IN_GUEST else count


needs_rekey: Final = pytest.mark.skipif(
    IN_KERNEL and not probe().rekey,
    reason="this kernel follows no key update; tests/kernel has what becomes of such a client",
)
