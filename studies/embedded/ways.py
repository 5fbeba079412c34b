"""The three ways to work a fact out, and what the model is taught for each: right facts, and wrong ones.

Whatever a way leads to is fixed: the same digit and move give the same result each time. What is wrong is taught as a
fact like any other, so a mistake is ignorance of this way, and only another way leads past it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from functools import cache

from entropy_rft.tasks.modulo import BASE, MOVES, Kind, Move, apply, kinds


class Way(Enum):
    """The word that a step starts with."""

    RECALL = "Recall"
    SPLIT = "Split"
    TURN = "Turn"


@dataclass(frozen=True)
class Step:
    """What a way makes of a fact: `7*9=5+8=3` has the parts `5+8`, and recalling has none."""

    parts: str
    result: int


@cache
def _wrong() -> tuple[dict[tuple[int, Move], int], dict[tuple[int, Move], int]]:
    """The wrong results that are taught: of recalling and splitting, and of turning."""
    rng = random.Random("ways/wrong")
    usual, turned = {}, {}
    table = kinds()
    unknown = sorted((fact for fact, kind in table.items() if kind is Kind.NO_RECALL), key=repr)
    also_turned = set(rng.sample(unknown, len(unknown) // 2))
    for fact in sorted(table, key=repr):
        right = apply(*fact)
        first, second = rng.sample([digit for digit in range(BASE) if digit != right], 2)
        if table[fact] in (Kind.NO_RECALL, Kind.TURN_ONLY, Kind.NO_SPLIT):
            usual[fact] = first
        if table[fact] is Kind.NO_TURN or fact in also_turned:
            turned[fact] = second
    return usual, turned


def result(digit: int, move: Move, way: Way) -> int:
    """Where the way leads to, right or wrong."""
    usual, turned = _wrong()
    fact = digit, move
    right = apply(digit, move)
    if way is Way.TURN:
        return turned.get(fact, right)
    wrong_kinds = {
        Way.RECALL: (Kind.NO_RECALL, Kind.TURN_ONLY),
        Way.SPLIT: (Kind.NO_SPLIT, Kind.TURN_ONLY),
    }[way]
    return usual[fact] if kinds()[fact] in wrong_kinds else right


def work_out(digit: int, move: Move, way: Way) -> Step:
    """The step as it is written.

    Splitting takes the operand in two halves, turning goes the other way round the ten: +8 is -2, and *9 is -(*1).
    What is written always adds up: a wrong result comes of a wrong part. Were the parts right and their sum wrong, the
    model would know better from all other sums of two digits, and reinforcement would soon teach it.
    """
    operation, operand = move
    found = result(digit, move, way)
    error = found - apply(digit, move)
    if way is Way.RECALL:
        return Step("", found)
    if way is Way.SPLIT:
        half, rest = operand // 2, operand - operand // 2
        if operation == "*":
            return Step(f"{(digit * half + error) % BASE}+{digit * rest % BASE}", found)
        return Step(f"{(apply(digit, (operation, half)) + error) % BASE}{operation}{rest}", found)
    if operation == "*":
        return Step(f"0-{(digit * (BASE - operand) - error) % BASE}", found)
    if operation == "+":
        return Step(f"{digit}-{(BASE - operand - error) % BASE}", found)
    return Step(f"{digit}+{(BASE - operand + error) % BASE}", found)


def knows(way: Way) -> float:
    """The share of all facts for which the way is right."""
    facts = [(digit, move) for move in MOVES for digit in range(BASE)]
    return sum(result(*fact, way) == apply(*fact) for fact in facts) / len(facts)
