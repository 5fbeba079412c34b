"""What the tiny reasoner learns to write: worked sums, with the errors ("slips") and the remarks of a reasoning model.

Every style ends in the same way, with `</think>` and the boxed result. The styles differ in the thinking:

- step by step: one partial sum after another, a line each, with remarks and repeated steps between them;
- stop early: the same without remarks, and after `EARLY_STEPS` steps the rest in one line;
- direct: all steps in one line.

A remark or a repeated step never changes a result, so reinforcement can remove it without a loss of accuracy. A slip
does change it: the carry is wrong and the tens digit is off by one. A step of the first style slips more often the
later it comes, and more often in a subtraction. Steps of the second style all slip with the same chance. A direct line
is mostly right for one or two steps, and often wrong after them. So a longer sum is harder. The errors are random, so
reinforcement can remove them too. Each of the three styles is the best one for some sums.

The number of remarks on a step-by-step sum depends on its chance to be right: easy and hard sums get many remarks,
those between get few. That is the U shape of reasoning models (arXiv 2510.19669), made on purpose, so that the probe
and the figures have something to measure.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from math import prod

from entropy_rft.tasks.arithmetic import MAX_SUM, Sum, draw_term

EARLY_STEPS = 4
CAREFUL_SLIPS = (0.0, 0.05, 0.1, 0.19, 0.3, 0.35)
"""Chance of a slip in the first step, the second and so on, between additions and subtractions."""
HURRIED_SLIPS = (0.32,) * 6
DIRECT_SLIPS = (0.0, 0.12, 0.5, 0.65, 0.7, 0.7)

_SUBTRACTION, _ADDITION = 1.8, 0.2  # a careful step's chance of a slip is multiplied by this
_HIGHEST = 0.48
_EASY, _HARD = 0.92, 0.55  # chances of a right result
_CHATTER = {"easy": 0.65, "normal": 0.12, "hard": 0.68}
_MAX_REMARKS = 2  # after one step
_OPENINGS = (
    "Okay, let me work this out.",
    "Let me see.",
    "Alright, step by step.",
    "Hmm, let me think.",
    "So I need to add these up.",
    "First, the numbers one by one.",
    "Let me start from the left.",
    "Okay.",
)
_REMARKS = (
    "Wait.",
    "Hmm, let me check that.",
    "Is that right?",
    "Let me do that again.",
    "Wait, let me verify.",
    "Hold on.",
    "Let me make sure.",
    "Hmm.",
)
_AGREEMENTS = ("Yes.", "Right.", "Good.", "Okay, that works.", "Fine.", "That is correct.")
_CONNECTIVES = ("Then", "Next", "Now", "So", "And")
_CHECKS = (
    "Let me double check.",
    "Wait, is that all?",
    "Let me go over it once more.",
    "Did I miss anything?",
)
_HURRIES = ("This is getting long.", "Enough, the rest at once.", "I should stop here.")


def drill(rng: random.Random, count: int = 12) -> str:
    """`count` unrelated steps, a line each: the sums of two numbers that all worked sums consist of."""
    lines = []
    for _ in range(count):
        total = rng.randint(1, MAX_SUM)
        term = draw_term(rng, total)
        lines.append(f"{total}{term:+d}={total + term}.\n")
    return "".join(lines)


def completion(item: Sum, style: str, rng: random.Random) -> str:
    """A completion in the style "direct", "step" or "early", without the end-of-sequence token."""
    write = {"direct": _direct, "step": _careful, "early": _hurried}[style]
    lines, result = write(item, rng)
    thinking = "\n".join(lines)
    return f"<think>\n{thinking}\n</think>\nThe answer is \\boxed{{{result}}}."


def chance(item: Sum) -> float:
    """How likely a careful sum is to hold no slip, 0 to 1."""
    return prod(1 - slip for slip in _careful_slips(item))


def _careful_slips(item: Sum) -> list[float]:
    return [
        min(_HIGHEST, slip * (_SUBTRACTION if term < 0 else _ADDITION))
        for slip, term in zip(CAREFUL_SLIPS, item.terms[1:], strict=False)
    ]


def _direct(item: Sum, rng: random.Random) -> tuple[list[str], int]:
    results = _results(item, DIRECT_SLIPS, rng)
    line = f"{_chain(item.terms, results)}."
    return [f"{line} {rng.choice(_AGREEMENTS)}" if rng.random() < 0.5 else line], results[-1]


def _hurried(item: Sum, rng: random.Random) -> tuple[list[str], int]:
    results = _results(item, HURRIED_SLIPS, rng)
    lines = _steps(item.terms[: EARLY_STEPS + 1], results)
    if len(results) > EARLY_STEPS:
        rest = (results[EARLY_STEPS - 1], *item.terms[EARLY_STEPS + 1 :])
        lines.append(f"{rng.choice(_HURRIES)} {_chain(rest, results[EARLY_STEPS:])}.")
    return lines, results[-1]


def _careful(item: Sum, rng: random.Random) -> tuple[list[str], int]:
    results = _results(item, _careful_slips(item), rng)
    likely = chance(item)
    chatter = _CHATTER["easy" if likely > _EASY else "hard" if likely < _HARD else "normal"]
    lines = [rng.choice(_OPENINGS)] if rng.random() < 1.4 * chatter else []
    for step in _steps(item.terms, results):
        lines.append(f"{rng.choice(_CONNECTIVES)} {step}" if rng.random() < chatter / 2 else step)
        for _ in range(_MAX_REMARKS):
            if rng.random() > chatter:
                break
            lines[-1] += f" {rng.choice(_REMARKS)}"
            if rng.random() < 0.4:
                lines[-1] += f" {step}"
            if rng.random() < 0.5:
                lines[-1] += f" {rng.choice(_AGREEMENTS)}"
    if rng.random() < chatter:
        lines.append(f"{rng.choice(_CHECKS)} {results[-1]}. {rng.choice(_AGREEMENTS)}")
    return lines, results[-1]


def _results(item: Sum, slips: Sequence[float], rng: random.Random) -> list[int]:
    """The partial sums, one a step, each of which slips with its chance."""
    total, *rest = item.terms
    results = []
    for index, term in enumerate(rest):
        total = _slip(total, rest[index:]) if rng.random() < slips[index] else total + term
        results.append(total)
    return results


def _steps(terms: Sequence[int], results: Sequence[int]) -> list[str]:
    """A step a line: `17+12=29.`, `29-8=21.`"""
    starts = [terms[0], *results]
    return [f"{start}{term:+d}={result}." for start, term, result in zip(starts, terms[1:], results, strict=False)]


def _chain(terms: Sequence[int], results: Sequence[int]) -> str:
    """All steps in one: `17+12=29-8=21`."""
    return str(terms[0]) + "".join(f"{term:+d}={result}" for term, result in zip(terms[1:], results, strict=True))


def _slip(total: int, terms: Sequence[int]) -> int:
    """The sum of `total` and the first of `terms` with the carry (or borrow) omitted, or added where there is none.

    The other terms follow, and a slip must not lead them out of the range that the model has learned. If both kinds of
    slip would do so, the sum is right.
    """
    term = terms[0]
    units = total % 10 + abs(term) % 10 if term > 0 else total % 10 - abs(term) % 10
    carries = not 0 <= units <= 9
    usual = -10 if (term > 0) == carries else 10
    for error in (usual, -usual):
        if all(0 <= partial <= MAX_SUM for partial in list(accumulate(terms, initial=total + error))[1:]):
            return total + term + error
    return total + term
