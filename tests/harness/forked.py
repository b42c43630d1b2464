"""A child process that does one thing, which may cost it its privileges, and tells the outcome."""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Callable
from typing import TypeVar

import msgspec

T = TypeVar("T")


def in_child(work: Callable[[], T]) -> T:
    """Run `work` in a forked child and give what it returns: text, numbers, lists or dicts."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        # The parent's test must not go on in the child, whatever happens.
        try:
            answer = msgspec.json.encode({"value": work()})
        except BaseException:  # noqa: BLE001 - the parent raises it
            answer = msgspec.json.encode({"error": traceback.format_exc()})
        with contextlib.suppress(OSError):
            os.write(writing, answer)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:  # noqa: PTH123 - a descriptor
        data = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert data, f"the child ended with {status}"
    told = msgspec.json.decode(data)
    assert "error" not in told, told["error"]
    value: T = told["value"]
    return value


def refusal(attempt: Callable[[], object]) -> str:
    """Give the name of the error with which the kernel refuses something; empty if it does not."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""
