"""Questions to a process of its own, which the kernel ends where an answer takes too long.

What a verifier computes may never come to an end, or fill the memory, and nothing in Python interrupts C code. So it
runs in a process that may be lost: see :mod:`entropy_rft.rewards.timed_worker` for its other side.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Hashable
from typing import Any

_LOGGER = logging.getLogger(__name__)

SECONDS = 5.0
"""Of computing, for one answer; math-verify's own limit on comparing two."""
_HURRIED = 1.0  # seconds for each answer once `_PATIENCE` seconds of a batch went into answers that take longer
_PATIENCE = 15.0
_WALL = 2.0  # times as long by the clock: the machine may be busy
_REMEMBERED = 1_000  # answers that did not end
_START = 120.0  # seconds for a new process to import what it needs


class Budget:
    """The time that the checks of one batch share."""

    def __init__(self) -> None:
        self.spent = 0.0

    @property
    def seconds(self) -> float:
        """Of computing, that the next answer gets."""
        return SECONDS if self.spent < _PATIENCE else _HURRIED


class TimedProcess:
    """A process that answers one request at a time; safe in threads, and after a fork.

    Args:
        module: has a function `serve`, which calls :func:`entropy_rft.rewards.timed_worker.serve`.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._ready = False
        self._endless: set[Hashable] = set()

    def start_batch(self) -> Budget:
        """The time that the checks of one batch share."""
        return Budget()

    def ask(self, key: Hashable, request: dict[str, Any], budget: Budget, text: str) -> dict[str, Any] | None:
        """The reply to `request`; None where there is none within the budget, which is remembered by `key`.

        A reply may be ``{"error": ...}``. Both are logged, with `text`, the answer that was checked.
        """
        with self._lock:
            reply = None
            if key not in self._endless:
                began = time.monotonic()
                reply = self._ask({**request, "seconds": budget.seconds})
                taken = time.monotonic() - began
                if taken > _HURRIED:
                    budget.spent += taken
                if reply is None:
                    if len(self._endless) >= _REMEMBERED:
                        self._endless.clear()
                    self._endless.add(key)
                    _LOGGER.warning("an answer that takes too long to check counts as wrong: %s", _shown(text))
        if reply is not None and "error" in reply:
            _LOGGER.warning("an answer that cannot be checked counts as wrong (%s): %s", reply["error"], _shown(text))
        return reply

    def close(self) -> None:
        """End the process, if this one started it."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The process's reply; None where it was ended, or is ended now."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._start()
        if not self._ready:
            if self._read(_START) is None:
                self.close()
                raise RuntimeError("the process that checks answers could not be started; its error is above")
            self._ready = True
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            reply = None
        else:
            reply = self._read(_WALL * request["seconds"])
        if reply is None:
            self._start()  # the next one gets ready meanwhile
        return reply

    def _start(self) -> None:
        self.close()
        # Not multiprocessing's spawn, which runs the user's script again, nor a fork of a process with threads.
        code = f"import sys; sys.path[:] = {sys.path!r}; from {self._module} import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._owner, self._ready = os.getpid(), False

    def _read(self, seconds: float) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        # A reply is one line, written at once: nothing of it can lie in the buffer already.
        with selectors.DefaultSelector() as selector:  # select.select takes no descriptor above 1,023
            selector.register(self._process.stdout, selectors.EVENT_READ)
            readable = selector.select(seconds)
        line = self._process.stdout.readline() if readable else ""
        return json.loads(line) if line.endswith("\n") else None


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:38]} ... {text[-38:]}"
