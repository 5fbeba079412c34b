"""Two settings of a process that keep the slowest answers near the median: what is collected, and how fast it accepts.

Both were found by measurement; see "What it costs" in docs/router.md.
"""

from __future__ import annotations

import gc
import os
import socket

# libuv accepts one connection for each listening descriptor in an iteration of the loop (its pull request 3696). Where
# an iteration answers hundreds of requests, 256 clients that connected together waited up to 4 s for it.
_DESCRIPTORS = 16


def settle_memory() -> None:
    """Exclude all that was loaded until now from garbage collection.

    With torch and transformers these are 250,000 objects. A full collection of them takes 0.1 s, during which no
    request is answered, and under load one or two are made each second.
    """
    gc.collect()
    gc.freeze()


def listening(listener: socket.socket) -> list[socket.socket]:
    """The socket with duplicates of its descriptor, so that an iteration of the loop accepts several connections."""
    return [listener, *(listener.dup() for _ in range(_DESCRIPTORS - 1))] if os.name == "posix" else [listener]
