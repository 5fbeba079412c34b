"""SIGTERM, by which clusters, containers and `kill` end a command, as an exception."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(BaseException):
    """SIGTERM came; nothing on the way out should take it for an error."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the block; but not in one of several processes, nor in a thread.

    Of several processes each is ended by the launcher, at once; waiting in C for one another they could not answer.
    """
    if "LOCAL_RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    earlier = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
