"""What the embedded model learns to write: what to expect, and then a line for each move of the question.

    Hard.
    Recall 7*9=1. Check 8+5=3 no. Again 8+5=3 yes.
    Split 3+8=7+4=1.
    Turn 1-6=1+4=5.

A line starts at a fork: which way to work the fact out. It ends at another: go on, or check. A check splits the
operand (whatever the way was), and its result replaces the first one where they differ, so a check repairs what
recalling got wrong, where splitting knows better. `Again` repeats the check and never changes anything. Which branch is
taken at a fork is drawn with the chances below; everything else follows from the question.

The first word says what the question's moves weigh, which stand in the prompt, and the chances depend on it: of easy
questions (any way will do) and hard ones (none is sure) all ways are tried, of those between most steps are recalled.
So the model's state at the end of the prompt knows what to expect, as far as the moves alone tell.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from entropy_rft.tasks.modulo import BASE, MOVES, Chain
from studies.embedded.ways import Way, work_out

EARLY_STEPS = 3
"""In the style "early" the moves after these are recalled in one line."""


@dataclass(frozen=True)
class Habit:
    """Chances at the forks.

    `ways`: of recalling, splitting and turning. `check`: of a check after each of them. `again`: of repeating the
    check, at most `most` times.
    """

    ways: tuple[float, float, float]
    check: tuple[float, float, float]
    again: float
    most: int = 2


HABITS = {
    "Easy": Habit(ways=(0.66, 0.16, 0.18), check=(0.5, 0.4, 0.3), again=0.3),
    "Fair": Habit(ways=(0.82, 0.06, 0.12), check=(0.4, 0.3, 0.2), again=0.1),
    "Hard": Habit(ways=(0.60, 0.15, 0.25), check=(0.5, 0.4, 0.3), again=0.3),
}


def expected(item: Chain) -> str:
    """The first word of the thinking, by the weight of the moves."""
    return "Easy" if item.weight <= 2 else "Fair" if item.weight <= 4 else "Hard"


def habit(item: Chain) -> Habit:
    """The chances for a question."""
    return HABITS[expected(item)]


def completion(item: Chain, style: str, rng: random.Random) -> str:
    """A completion in the style "step", "early" or "direct", without the end-of-sequence token."""
    lines = [] if style == "direct" else [f"{expected(item)}."]
    digit = item.start
    careful = {"step": len(item.moves), "early": EARLY_STEPS, "direct": 0}[style]
    for move in item.moves[:careful]:
        line, digit = _line(digit, move, habit(item), rng, repeat=style == "step")
        lines.append(line)
    rest = item.moves[careful:]
    if rest:
        # The word comes first here too: without it the model copies another digit than the one it starts from.
        chain = f"{Way.RECALL.value} {digit}"
        for move in rest:
            before, digit = digit, work_out(digit, move, Way.RECALL).result
            chain += f"{move[0]}{move[1]}={digit}"
        if style == "direct":  # "verify once"
            check, digit = _check(before, rest[-1], digit)
            chain += f".{check}"
        lines.append(f"{chain}.")
    thinking = "\n".join(lines)
    return f"<think>\n{thinking}\n</think>\nThe answer is \\boxed{{{digit}}}."


def _line(digit: int, move: tuple[str, int], chances: Habit, rng: random.Random, repeat: bool) -> tuple[str, int]:
    (way,) = rng.choices(tuple(Way), chances.ways)
    step = work_out(digit, move, way)
    line, found = written(digit, move, way), step.result
    if rng.random() < chances.check[tuple(Way).index(way)]:
        check, found = _check(digit, move, found)
        line += f".{check}"
        for _ in range(chances.most if repeat else 0):
            if rng.random() >= chances.again:
                break
            line += f". Again {work_out(digit, move, Way.SPLIT).parts}={found} yes"
    return f"{line}.", found


def _check(digit: int, move: tuple[str, int], found: int) -> tuple[str, int]:
    """The text of a check and the result that holds after it."""
    step = work_out(digit, move, Way.SPLIT)
    return f" Check {step.parts}={step.result} {'yes' if step.result == found else 'no'}", step.result


def written(digit: int, move: tuple[str, int], way: Way) -> str:
    """A step without its full stop: `Split 3+8=7+4=1`."""
    step = work_out(digit, move, way)
    parts = f"{step.parts}=" if step.parts else ""
    return f"{way.value} {digit}{move[0]}{move[1]}={parts}{step.result}"


def drill(rng: random.Random, count: int = 12) -> str:
    """`count` unrelated steps, a line each, all ways alike."""
    lines = [written(rng.randrange(BASE), rng.choice(MOVES), rng.choice(tuple(Way))) for _ in range(count)]
    return "".join(f"{line}.\n" for line in lines)
