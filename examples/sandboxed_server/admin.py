"""The admin: binds the port, starts the two others, and waits for them.

It touches no byte of a peer and never reads the key, so that the server, which is forked from it,
cannot have inherited any of it.
"""

from __future__ import annotations

import os
import select
import socket

import acceptor
import confinement
import reach
import server
from handfast.handover import channel
from handfast.process.fork import fork
from line import Line, Ready
from memory import Memory
from scene import Scene


def main(scene: Scene, line: Line, acceptors: Line, servers: Line) -> int:
    """Be the admin; the other two lines are its children's."""
    parent, here = os.getppid(), os.getpid()
    listener = socket.create_server(("127.0.0.1", scene.port))
    line.tell(Ready(listener.getsockname()[1]))
    confinement.begin(scene.identity)
    sender, receiver = channel.pair()
    children = (
        fork(
            "acceptor",
            lambda: acceptor.main(scene, acceptors, listener, sender, here),
            keep(acceptors, listener, sender),
        ),
        fork(
            "server",
            lambda: server.main(scene, servers, receiver, here),
            keep(servers, receiver),
        ),
    )
    for each in (acceptors, servers, listener, sender, receiver):
        each.close()
    ends = {os.pidfd_open(pid): pid for pid in children}
    memory = Memory()
    confinement.enter("admin", scene.identity, parent)
    line.say("bound the port, started both, gave up the rest")
    return attend(line, ends, memory)


def keep(*ours: Line | socket.socket) -> list[int]:
    """Give the descriptors of what a child keeps."""
    return [each.fileno() for each in ours]


def attend(line: Line, ends: dict[int, int], memory: Memory) -> int:
    """Wait until both children have ended; should one fail, end, and so make the other end."""
    watched: list[Line | int] = [line, *ends]
    while ends:
        for ready in select.select(watched, [], [])[0]:
            if isinstance(ready, int):
                watched.remove(ready)
                if os.waitpid(ends.pop(ready), 0)[1]:
                    return 1
            elif (order := line.hear()) is not None:
                line.tell(reach.explore(order, memory, None))
            else:
                watched.remove(line)  # they have been told too
    return 0
