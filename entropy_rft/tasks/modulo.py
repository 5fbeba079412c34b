"""Chains of five operations on a digit, modulo ten: a task that needs no file, for the second embedded model.

"Start at 7, then *9 +3 -6 *7 +8, modulo 10?" All questions have five moves and the same number of characters. What
makes one harder is which facts it meets on its way: a fact is a digit and a move, and each belongs to a :class:`Kind`.
The kinds are named after the three ways to work a fact out, of which the embedded model knows some for some facts only
(`studies/embedded/ways.py`). The ten levels follow from how many facts of each kind lie on the way.

A question belongs to one split for ever, by a hash of its text, so that no seed can leak a test question into training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import accumulate
from os import PathLike

from entropy_rft.errors import UserValueError
from entropy_rft.tasks.generated import by_level
from entropy_rft.tasks.task import Task

LEVELS = tuple(range(1, 11))
STEPS = 5
BASE = 10
_WAITING = 100_000  # draws of one level that are kept for its later turns
_PATIENCE = 100_000  # draws without a new question before a level counts as used up

Move = tuple[str, int]
"""An operation and its operand."""

MOVES: tuple[Move, ...] = (
    *(("+", operand) for operand in range(2, 10)),
    *(("-", operand) for operand in range(2, 10)),
    # Prime to ten, so that a wrong digit is never put right by what follows.
    *(("*", operand) for operand in (3, 7, 9)),
)


class Kind(Enum):
    """Which ways lead to the right result of a fact: to recall it, to split the operand, to turn it to the other side.

    PLAIN: all three. NO_TURN and NO_SPLIT: all but one. NO_RECALL: splitting, and turning for half of them. TURN_ONLY:
    turning alone.
    """

    PLAIN = "plain"
    NO_TURN = "no_turn"
    NO_SPLIT = "no_split"
    NO_RECALL = "no_recall"
    TURN_ONLY = "turn_only"


# Shares of the kinds, in the order above, among the facts of a move of weight 0, 1 and 2.
_SHARES = ((0.73, 0.18, 0.02, 0.07, 0.0), (0.30, 0.12, 0.03, 0.55, 0.0), (0.17, 0.11, 0.02, 0.40, 0.30))


def weight(move: Move) -> int:
    """How much to expect of a move before its digit is known: 0 (mostly plain), 1, or 2 (few plain ones)."""
    operation, operand = move
    if operation == "*":
        return 2 if operand >= 7 else 1
    if operation == "-":
        return 2 if operand >= 8 else 1 if operand >= 6 else 0
    return 1 if operand >= 8 else 0


@cache
def kinds() -> dict[tuple[int, Move], Kind]:
    """The kind of each fact (digit, move): drawn once, with the shares of each weight kept exactly."""
    rng = random.Random("modulo/kinds")
    result = {}
    for group, shares in enumerate(_SHARES):
        facts = [(digit, move) for move in MOVES if weight(move) == group for digit in range(BASE)]
        rng.shuffle(facts)
        start, upto = 0, 0.0
        for kind, share in zip(Kind, shares, strict=True):
            upto += share * len(facts)
            for fact in facts[start : round(upto)]:
                result[fact] = kind
            start = round(upto)
    return result


def apply(digit: int, move: Move) -> int:
    """The digit that a move leads to."""
    operation, operand = move
    if operation == "*":
        return digit * operand % BASE
    return (digit + operand if operation == "+" else digit - operand) % BASE


@dataclass(frozen=True)
class Chain:
    """A digit and the moves that follow it."""

    start: int
    moves: tuple[Move, ...]

    @property
    def question(self) -> str:
        moves = " ".join(f"{operation}{operand}" for operation, operand in self.moves)
        return f"Start at {self.start}, then {moves}, modulo 10?"

    @property
    def digits(self) -> tuple[int, ...]:
        """The start and the digit after each move."""
        return tuple(accumulate(self.moves, apply, initial=self.start))

    @property
    def answer(self) -> int:
        return self.digits[-1]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of each fact on the right way."""
        table = kinds()
        return tuple(table[fact] for fact in zip(self.digits, self.moves, strict=False))

    @property
    def weight(self) -> int:
        """What the moves alone, without the digits between them, say of the difficulty."""
        return sum(map(weight, self.moves))

    @property
    def level(self) -> int | None:
        """1 to 10; None for the few chains that no level takes.

        1: all facts plain. 2 and 3: one, or more, that one of the rarer ways gets wrong. 4 and 5: one fact that cannot
        be recalled, with none or some of the former. 6 to 8: two, three and four such facts. 9: one fact that only
        turning solves. 10: besides it one or two that cannot be recalled.
        """
        return _level(self.start, self.moves)

    @property
    def split(self) -> str:
        """The split that the question belongs to: 80 % train, 10 % validation, 10 % test."""
        bucket = int.from_bytes(hashlib.sha256(self.question.encode()).digest()[:8], "big") % 10
        return "test" if bucket == 9 else "validation" if bucket == 8 else "train"


@cache
def _table() -> dict[tuple[int, Move], tuple[Kind, int]]:
    """The kind of each fact and where it leads: drawing questions looks up millions of them."""
    return {fact: (kind, apply(*fact)) for fact, kind in kinds().items()}


def _level(digit: int, moves: Sequence[Move]) -> int | None:
    table = _table()
    turn_only = unknown = traps = 0
    for move in moves:
        kind, digit = table[digit, move]
        if kind is Kind.NO_RECALL:
            unknown += 1
        elif kind is Kind.TURN_ONLY:
            turn_only += 1
        elif kind is not Kind.PLAIN:
            traps += 1
    if turn_only:
        return None if turn_only > 1 or unknown > 2 else 9 if unknown == 0 else 10
    if unknown == 0:
        return min(1 + traps, 3)
    if unknown == 1:
        return 4 if traps == 0 else 5
    return {2: 6, 3: 7, 4: 8}.get(unknown)


def draw(rng: random.Random) -> Chain:
    """A random chain of any level and split."""
    return Chain(rng.randrange(BASE), tuple(rng.choice(MOVES) for _ in range(STEPS)))


def questions(split: str, levels: Sequence[int] = LEVELS, seed: int = 0) -> Iterator[Chain]:
    """Distinct questions for ever, the levels taking turns; raises ValueError when a level has no new one left."""
    rng = random.Random(f"modulo/{seed}/{split}")
    seen: set[Chain] = set()
    # A draw that another level can use waits for that level's turn.
    waiting: dict[int, list[Chain]] = {level: [] for level in levels}
    while True:
        for level in levels:
            for _ in range(_PATIENCE):
                if waiting[level]:
                    break
                candidate = draw(rng)
                found = candidate.level
                if found not in waiting or len(waiting[found]) > _WAITING:
                    continue
                if candidate not in seen and candidate.split == split:
                    seen.add(candidate)
                    waiting[found].append(candidate)
            else:
                raise UserValueError(f"modulo: split {split!r} has no more different questions of level {level}")
            yield waiting[level].pop(0)


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
    """The modulo task; the column `difficulty` has each question's level, 1 to 10.

    Without a `limit`, `train` has 4,096 questions, `validation` and `test` 600 each. The levels take turns.
    """
    return by_level(
        "modulo", questions, lambda item: item.level, LEVELS, "numbers",
        path=path, split=split, limit=limit, seed=seed, levels=levels,
        instruction=instruction, answer_format=answer_format, thinking=thinking,
    )  # fmt: skip
