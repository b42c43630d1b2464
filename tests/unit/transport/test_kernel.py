"""What is handed to the kernel, byte by byte, and the pipes that bytes go through.

What the kernel makes of it is for tests/kernel.
"""

from __future__ import annotations

import os
import resource
import socket
import struct

import pytest

from handfast.tls.keys import SUITES
from handfast.transport.kernel import crypto_info, enable
from handfast.transport.pipes import ROOM, Pipes
from harness.forked import in_child

KEY = bytearray(range(100, 132))
IV = bytearray(range(12))
NUMBER = (7).to_bytes(8, "big")


@pytest.mark.parametrize(
    ("code", "expected"),
    [  # struct tls12_crypto_info_*: version, cipher, iv, key, salt, rec_seq (linux/tls.h)
        (0x1301, struct.pack("=HH", 0x0304, 51) + IV[4:] + KEY[:16] + IV[:4] + NUMBER),
        (0x1302, struct.pack("=HH", 0x0304, 52) + IV[4:] + KEY + IV[:4] + NUMBER),
        (0x1303, struct.pack("=HH", 0x0304, 54) + IV + KEY + NUMBER),
        (0xC02B, struct.pack("=HH", 0x0303, 51) + b"\0" * 7 + b"\x09" + KEY[:16] + IV[:4] + NUMBER),
        (0xC030, struct.pack("=HH", 0x0303, 52) + b"\0" * 7 + b"\x09" + KEY + IV[:4] + NUMBER),
        (0xCCA8, struct.pack("=HH", 0x0303, 54) + IV + KEY + NUMBER),
    ],
)
def test_keys_have_the_layout_of_the_kernel(code: int, expected: bytes) -> None:
    suite = SUITES[code]

    info = crypto_info(suite, KEY[: suite.key_length], IV[: suite.fixed_iv], 7, 9)

    assert bytes(info) == expected


def test_a_socket_that_is_not_connected_is_refused_by_the_system() -> None:
    with socket.socket() as sock, pytest.raises(OSError, match=r".+"):
        enable(sock)


@pytest.fixture
def pipes() -> Pipes:
    return Pipes()


def test_bytes_go_through_a_pipe_from_socket_to_socket(pipes: Pipes) -> None:
    (source, feeding), (sink, seeing) = socket.socketpair(), socket.socketpair()
    with source, feeding, sink, seeing:
        feeding.sendall(b"through")
        pipe = pipes.take()
        assert pipe is not None
        assert pipe.fill(source.fileno()) == len(pipe) == 7
        pipe.pour(sink.fileno())

        assert len(pipe) == 0
        assert seeing.recv(100) == b"through"
        feeding.close()
        assert pipe.fill(source.fileno()) == 0
        pipes.give_back(pipe)
        assert pipes.take() is pipe
        pipe.close()


def test_a_pipe_has_room_for_what_is_moved_at_a_time_and_for_whole_records(pipes: Pipes) -> None:
    pipe = pipes.take()
    assert pipe is not None
    assert pipe.records * (1 << 14) >= ROOM or pipe.records >= 2
    pipe.close()


def test_a_pipe_with_bytes_in_it_is_not_lent_again(pipes: Pipes) -> None:
    source, feeding = socket.socketpair()
    with source, feeding:
        feeding.sendall(b"of another")
        pipe = pipes.take()
        assert pipe is not None
        pipe.fill(source.fileno())
        pipes.give_back(pipe)

        other = pipes.take()
        assert other is not None
        assert other is not pipe
        assert len(other) == 0
        pipes.give_back(other)
        pipes.close()


def test_pipes_leave_the_high_descriptors_to_others() -> None:
    pipes = Pipes(ceiling=os.dup(0))
    os.close(pipes._ceiling)

    assert pipes.take() is None


def test_without_descriptors_there_is_no_pipe_and_nothing_leaks(pipes: Pipes) -> None:
    def work() -> list[bool]:
        taken = os.dup(0)  # the lowest that is free
        os.close(taken)
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 1, taken + 1))
        refused = pipes.take() is None
        again = os.dup(0)
        return [refused, taken == again]

    assert in_child(work) == [True, True]
