"""Where sessions live in a run of the tests: in user space or, with TEST_KERNEL_TLS=on, the kernel.

The same tests hold for both. `harness.guest` runs them for the kernel.
"""

from __future__ import annotations

import os
from typing import Final

KERNEL_TLS: Final = os.environ.get("TEST_KERNEL_TLS", "off")
IN_GUEST: Final = "TEST_IN_GUEST" in os.environ
IN_KERNEL: Final = KERNEL_TLS == "on"
