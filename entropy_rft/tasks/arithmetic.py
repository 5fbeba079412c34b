"""Sums and differences of two to seven small integers: a task that needs no file, for the tiny reasoner.

"What is 17 + 25 - 8?" has three terms, and the number of terms is its difficulty. The first is 1 to 99, the
others 1 to 20, and every partial sum stays within 0 to 99. A question always belongs to the same split, by a hash
of its text, so that no seed can leak a test question into training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike

from entropy_rft.errors import UserValueError
from entropy_rft.tasks.generated import by_level
from entropy_rft.tasks.task import Task

LEVELS = (2, 3, 4, 5, 6, 7)
MAX_TERM = 20
MAX_SUM = 99
_PATIENCE = 4_000  # draws without a new question before a level counts as exhausted


@dataclass(frozen=True)
class Sum:
    """A sum of signed integers, evaluated from left to right."""

    terms: tuple[int, ...]

    @property
    def question(self) -> str:
        first, *rest = self.terms
        return f"What is {first}" + "".join(f" {'+' if term > 0 else '-'} {abs(term)}" for term in rest) + "?"

    @property
    def answer(self) -> int:
        return sum(self.terms)

    @property
    def split(self) -> str:
        """The split the question belongs to: 80 % train, 10 % validation, 10 % test."""
        bucket = int.from_bytes(hashlib.sha256(self.question.encode()).digest()[:8], "big") % 10
        return "test" if bucket == 9 else "validation" if bucket == 8 else "train"


def draw_term(rng: random.Random, total: int) -> int:
    """A random signed term that keeps `total` within 0 to `MAX_SUM`."""
    size, down = rng.randint(1, MAX_TERM), rng.random() < 0.5
    # The other sign always fits: sizes are at most half the range.
    if total < size if down else total + size > MAX_SUM:
        down = not down
    return -size if down else size


def draw(rng: random.Random, level: int, split: str) -> Sum:
    """A random sum of `level` terms that belongs to `split`."""
    while True:
        total = rng.randint(1, MAX_SUM)
        terms = [total]
        for _ in range(level - 1):
            terms.append(draw_term(rng, total))
            total += terms[-1]
        result = Sum(tuple(terms))
        if result.split == split:
            return result


def questions(split: str, levels: Sequence[int] = LEVELS, seed: int = 0) -> Iterator[Sum]:
    """An endless stream of distinct questions, one of each level in turn; ValueError when a level has no new one."""
    rng = random.Random(f"{seed}/{split}")
    seen: set[Sum] = set()
    while True:
        for level in levels:
            for _ in range(_PATIENCE):
                candidate = draw(rng, level, split)
                if candidate not in seen:
                    break
            else:
                raise UserValueError(f"arithmetic: split {split!r} has no more different questions of {level} terms")
            seen.add(candidate)
            yield candidate


def load(
    path: str | PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    levels: Sequence[int] = LEVELS,
    instruction: str | None = None,
    answer_format: str | None = None,
    thinking: bool = True,
) -> Task:
    """The arithmetic task; `levels` are the numbers of terms, and the column `difficulty` has each question's.

    Without a `limit`, `train` has 4,096 questions, `validation` and `test` 600 each. The levels alternate.
    """
    return by_level(
        "arithmetic", questions, lambda item: len(item.terms), LEVELS, "numbers of terms",
        path=path, split=split, limit=limit, seed=seed, levels=levels,
        instruction=instruction, answer_format=answer_format, thinking=thinking,
    )  # fmt: skip
