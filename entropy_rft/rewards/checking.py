"""Checks answers with a time limit.

math-verify evaluates the expression in an answer. A tower of powers or a factorial can be too large for any machine.
math-verify's own time limits do not interrupt C code, and do not exist outside the main thread. So an answer that
cannot contain such an expression (text, numbers, a box around them) is checked here, by TRL's reward as it is. Every
other answer is checked by the same reward in a separate process, which the kernel ends after some seconds of computing.
An answer whose check is ended counts as wrong.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
from typing import Any

from entropy_rft.rewards.checking_worker import check

_LOGGER = logging.getLogger(__name__)

SECONDS = 5.0
"""Seconds of computing for one answer, as math-verify's own limit on comparing two."""
_HURRIED = 1.0  # seconds for each answer once `_PATIENCE` seconds of a batch went into answers that take longer
_PATIENCE = 15.0
_WALL = 2.0  # factor for the limit by the clock: the machine may be busy
_REMEMBERED = 1_000  # answers whose check did not end
_START = 120.0  # seconds for a new process to import what it needs

# No powers, factorials and exponents, and no commands except those of text, boxes and spacing.
_HARMLESS = re.compile(r"(?:[^\\^!*]|\*(?!\*)|\\(?:boxed|text)\b|\\[$%,;:() \[\]{}\n])*")
EXPONENT = re.compile(r"\d[eE][+-]?\d")
_LONG_NUMBER = re.compile(r"\d{40}")
_LONGEST = 4_000  # characters


def is_harmless(text: str) -> bool:
    """Whether nothing in `text` can make a number much longer than the text."""
    return (
        len(text) <= _LONGEST
        and _HARMLESS.fullmatch(text) is not None
        and not EXPONENT.search(text)
        and not _LONG_NUMBER.search(text)
    )


class Checker:
    """Applies TRL's accuracy rewards to one completion at a time; safe in threads, and after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._ready = False
        self._endless: set[tuple[str, str, str]] = set()

    def start_batch(self) -> _Budget:
        """The time that the checks of one batch share."""
        return _Budget()

    def check(
        self, reward: str, content: str, solution: str, delimiters: list[str] | None, budget: _Budget
    ) -> tuple[float | None, dict[str, Any]]:
        """TRL's `reward` of a completion, and the columns that it logs; 0 where the check does not end."""
        read = content if delimiters is None else _after(content, delimiters)
        if is_harmless(read) and is_harmless(solution):
            return check(reward, content, solution, delimiters)
        with self._lock:
            key = (reward, read, solution)
            reply = None
            if key not in self._endless:
                began = time.monotonic()
                request = {"reward": reward, "content": content, "solution": solution, "delimiters": delimiters}
                reply = self._ask({**request, "seconds": budget.seconds})
                taken = time.monotonic() - began
                if taken > _HURRIED:
                    budget.spent += taken
                if reply is None:
                    if len(self._endless) >= _REMEMBERED:
                        self._endless.clear()
                    self._endless.add(key)
                    _LOGGER.warning("an answer that takes too long to check counts as wrong: %s", _shown(read))
        if reply is None:
            return 0.0, {"solution": solution, "gold_parsed": "[skipped]", "answer_parsed": "[too long to check]"}
        if "error" in reply:
            _LOGGER.warning("an answer that cannot be checked counts as wrong (%s): %s", reply["error"], _shown(read))
            return 0.0, {"solution": solution, "gold_parsed": "[skipped]", "answer_parsed": "[cannot be checked]"}
        return reply["value"], reply["columns"]

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
        """The process's reply; None where the process has ended, or is ended because it took too long."""
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
            self._start()  # the new one starts in the background
        return reply

    def _start(self) -> None:
        self.close()
        # Not multiprocessing's spawn, which runs the user's script again, nor a fork of a process with threads.
        code = f"import sys; sys.path[:] = {sys.path!r}; from entropy_rft.rewards.checking_worker import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._owner, self._ready = os.getpid(), False

    def _read(self, seconds: float) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        # A reply is one line, written at once: no part of it can be in the buffer already.
        readable, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if readable else ""
        return json.loads(line) if line.endswith("\n") else None


class _Budget:
    def __init__(self) -> None:
        self.spent = 0.0

    @property
    def seconds(self) -> float:
        return SECONDS if self.spent < _PATIENCE else _HURRIED


CHECKER = Checker()
"""The checker of this process."""
atexit.register(CHECKER.close)


def _after(content: str, delimiters: list[str]) -> str:
    for delimiter in delimiters:
        if delimiter in content:
            return content.split(delimiter)[-1]
    return ""  # without the end of the thinking nothing is read


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:38]} ... {text[-38:]}"
