from __future__ import annotations

import subprocess
import sys

HEAVY = ("asyncio", "yaml", "OpenSSL", "cryptography.x509", "handfast.config", "handfast.process")


def test_importing_it_brings_no_more_than_it_takes_to_carry_a_session() -> None:
    program = "import sys, handfast.app; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    modules = done.stdout.split()
    assert "handfast.app.listener" in modules
    assert [each for each in HEAVY if each in modules] == []
