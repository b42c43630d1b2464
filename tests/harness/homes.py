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
IN_MOTION: Final = "TEST_IN_MOTION" in os.environ
"""The relay's own tests, with connections that go to another relay and back all the time."""

TIMEOUT: Final = 120.0 if IN_GUEST else 20.0
"""How many seconds the tests wait for what must happen. The guest's one processor is slow."""


def sized(count: int, divisor: int = 10) -> int:
    """Give how many bytes of `count` are enough here: in the guest, a system call costs 50 us."""
    return count // divisor if IN_GUEST else count


needs_rekey: Final = pytest.mark.skipif(
    IN_KERNEL and not probe().rekey,
    reason="this kernel follows no key update; tests/kernel has what becomes of such a client",
)

stays: Final = pytest.mark.skipif(
    IN_MOTION, reason="it looks at a connection that stays where it is"
)
