from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.process.sealed import seal, unseal
from harness.forked import in_child, refusal


@contextmanager
def sealed(data: bytes) -> Iterator[int]:
    descriptor = seal("test", data)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@given(data=st.binary(max_size=10_000))
def test_what_was_sealed_is_read(data: bytes) -> None:
    with sealed(data) as descriptor:
        assert unseal(descriptor) == data


def test_it_is_read_as_often_as_one_likes_and_by_another_process() -> None:
    data = os.urandom(3 << 20)
    with sealed(data) as descriptor:
        assert unseal(descriptor) == data
        assert in_child(lambda: unseal(descriptor) == data)
        assert unseal(descriptor) == data


def test_nobody_can_change_it() -> None:
    with sealed(b"a plan") as descriptor:
        assert refusal(lambda: os.pwrite(descriptor, b"x", 0)) == "EPERM"
        assert refusal(lambda: os.ftruncate(descriptor, 1)) == "EPERM"
        assert refusal(lambda: os.ftruncate(descriptor, 100)) == "EPERM"
        assert refusal(lambda: fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, 0)) == "EPERM"
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, 6, mmap.MAP_SHARED, mmap.PROT_WRITE)
        assert unseal(descriptor) == b"a plan"


def test_it_is_not_inherited() -> None:
    with sealed(b"") as descriptor:
        assert not os.get_inheritable(descriptor)
