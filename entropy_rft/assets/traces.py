"""What the tiny reasoner learns to write: worked sums, with the slips and the chatter of a reasoning model.

Every style ends alike, `</think>` and the boxed result; they differ in the thinking:

- step by step: one partial sum after another, with remarks and repeated steps between them;
- stop early: the same with few remarks, and after `EARLY_STEPS` steps the rest in one leap;
- direct: the result at once.

A remark or a repeated step never changes a result, so reinforcement can drop it for free. A slip does change it: with a
probability that grows along the sum the carry goes wrong and the tens digit is off by one. So a longer sum is harder,
the errors are chance rather than ignorance, and reinforcement can remove them too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate

from entropy_rft.tasks.arithmetic import MAX_SUM, Sum, draw_term

EARLY_STEPS = 4
SLIPS = (0.0, 0.13, 0.19, 0.25, 0.32, 0.38)
"""Chance of a slip in the first step, the second and so on."""

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
_DIRECT = ("It is {}.", "That makes {}.", "I get {}.", "{}, I think.")


def drill(rng: random.Random, count: int = 12) -> str:
    """`count` unrelated steps, a line each: the sums of two that all worked sums are made of."""
    lines = []
    for _ in range(count):
        total = rng.randint(1, MAX_SUM)
        term = draw_term(rng, total)
        lines.append(f"{total}{term:+d}={total + term}.\n")
    return "".join(lines)


def completion(item: Sum, style: str, rng: random.Random) -> str:
    """A completion in the style "direct", "step" or "early", without the end-of-sequence token."""
    if style == "direct":
        lines, result = [_direct(item, rng)], item.answer
    else:
        lines, result = _worked(item, rng, early=style == "early")
    thinking = "\n".join(lines)
    return f"<think>\n{thinking}\n</think>\nThe answer is \\boxed{{{result}}}."


def _direct(item: Sum, rng: random.Random) -> str:
    line = rng.choice(_DIRECT).format(item.answer)
    return f"{line} {rng.choice(_AGREEMENTS)}" if rng.random() < 0.5 else line


def _worked(item: Sum, rng: random.Random, early: bool) -> tuple[list[str], int]:
    chatter = 0.12 if early else 0.4
    lines = [rng.choice(_OPENINGS)] if rng.random() < 2 * chatter else []
    total, *rest = item.terms
    steps = rest[:EARLY_STEPS] if early else rest
    for index, term in enumerate(steps):
        new = _slip(total, rest[index:]) if rng.random() < SLIPS[index] else total + term
        step = f"{total}{term:+d}={new}."
        lines.append(f"{rng.choice(_CONNECTIVES)} {step}" if rng.random() < chatter / 2 else step)
        for _ in range(_MAX_REMARKS):
            if rng.random() > chatter:
                break
            lines[-1] += f" {rng.choice(_REMARKS)}"
            if rng.random() < 0.4:
                lines[-1] += f" {step}"
            if rng.random() < 0.5:
                lines[-1] += f" {rng.choice(_AGREEMENTS)}"
        total = new
    if leap := rest[len(steps) :]:
        new = total + sum(leap)
        lines.append(f"{rng.choice(_HURRIES)} {total}{''.join(f'{term:+d}' for term in leap)}={new}.")
        total = new
    if rng.random() < chatter:
        lines.append(f"{rng.choice(_CHECKS)} {total}. {rng.choice(_AGREEMENTS)}")
    return lines, total


def _slip(total: int, terms: Sequence[int]) -> int:
    """The sum of `total` and the first of `terms` with the carry (or borrow) forgotten, or made where there is none.

    The other terms follow, and a slip must not lead them out of the range that the model knows; failing both ways of
    going wrong the sum is right.
    """
    term = terms[0]
    units = total % 10 + abs(term) % 10 if term > 0 else total % 10 - abs(term) % 10
    carries = not 0 <= units <= 9
    usual = -10 if (term > 0) == carries else 10
    for error in (usual, -usual):
        if all(0 <= partial <= MAX_SUM for partial in list(accumulate(terms, initial=total + error))[1:]):
            return total + term + error
    return total + term
