from __future__ import annotations

import contextlib
import os
import sys

import pytest

from handfast.process.fork import fork


def test_a_child_ends_as_it_should_when_nobody_reads_its_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    stream.write("never read")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)  # as it is when the descriptor was closed

    pid = fork("test", lambda: 7, {writing})
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert status == 7
    with contextlib.suppress(BrokenPipeError):
        stream.close()
