"""The other side of :class:`entropy_rft.rewards.timed.TimedProcess`. It imports no torch."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_MEMORY = 2 << 30  # bytes beyond what importing took: a number of that size is no answer


def serve(answer: Callable[..., dict[str, Any]], warm_up: Callable[[], object]) -> None:
    """Answer the requests on standard input, one JSON a line, until it ends.

    Args:
        answer: is called with a request's fields; its reply is written as JSON, or what it raised as ``error``.
        warm_up: is called before the first request, and before the limit on memory.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes standard input
    replies = sys.stdout
    sys.stdout = sys.stderr
    warm_up()
    _limit_memory()
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        # The kernel ends this process when the time is up, whatever C code it is in: nothing in Python could.
        signal.setitimer(signal.ITIMER_PROF, request.pop("seconds"))
        try:
            reply = answer(**request)
        except Exception as error:  # MemoryError and RecursionError too
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _reply(replies, reply)


def _reply(stream: IO[str], value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def _limit_memory() -> None:
    try:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:  # no Linux: the limit on time has to do
        return
    with contextlib.suppress(ValueError, OSError):  # a lower limit is there already
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
