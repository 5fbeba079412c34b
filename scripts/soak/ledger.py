"""What each backend of the soak was asked and has sent, in a file that outlives a SIGKILL.

Two bytes for each request, by its number: how often the backend received it, and how many pieces of the answer it had
given to the system. The file is mapped into memory, so that a note costs no call of the system and no note is lost
when the process is killed.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CAPACITY = 2**24  # requests; the file is sparse

PLAIN_S = 0.05  # from a request to its plain answer
BETWEEN_S = 0.02  # between two events of a stream
WORDS = 8
STREAM_PIECES = WORDS + 3  # the role, the words, the end, [DONE]
PREFIX = "soak-"  # of a request's id, its number follows


@dataclass(frozen=True)
class Record:
    """What one backend knows of a request."""

    received: int
    written: int


class Ledger:
    """One backend's file; made where it is missing.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(2 * CAPACITY)
            self._map = mmap.mmap(file.fileno(), 2 * CAPACITY)

    def received(self, number: int) -> None:
        self._map[2 * number] = min(255, self._map[2 * number] + 1)

    def written(self, number: int, pieces: int) -> None:
        self._map[2 * number + 1] = pieces

    def record(self, number: int) -> Record:
        return Record(self._map[2 * number], self._map[2 * number + 1])

    def receipts(self, count: int) -> np.ndarray:
        """How often each of the first `count` requests was received."""
        return np.frombuffer(self._map[: 2 * count], dtype=np.uint8)[::2].astype(np.int64)
