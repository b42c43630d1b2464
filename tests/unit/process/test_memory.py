from __future__ import annotations

import os
import subprocess
from pathlib import Path

from handfast.process.memory import Memory, memory_of


def test_the_memory_of_a_process_is_within_what_the_system_says() -> None:
    memory = memory_of(os.getpid())

    assert memory.resident >= memory.proportional > 1 << 20


def test_the_resident_size_is_that_of_the_process_asked_for() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        text = Path(f"/proc/{sleeping.pid}/status").read_text()
        memory = memory_of(sleeping.pid)
        sleeping.kill()

    (line,) = (each for each in text.splitlines() if each.startswith("VmRSS:"))
    assert abs(memory.resident - int(line.split()[1]) * 1024) < 1 << 20


def test_of_a_process_that_has_ended_nothing_is_known() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()

    assert memory_of(ended.pid) == Memory(0, 0)
