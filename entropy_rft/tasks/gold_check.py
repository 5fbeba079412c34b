"""Checks that the reward reads a gold answer fully: the answer, boxed, must be right, and a changed one wrong."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence

from entropy_rft.rewards.checking import CHECKER, EXPONENT
from entropy_rft.tasks.rows import Row, shown

# What the reward reads correctly, by the tests: integers, decimals as far as it compares them, fractions, percentages.
SURE = re.compile(
    r"-?(0|[1-9]\d{0,14})|-?\d{0,15}\.\d{1,5}|\$-?\d{1,15}\\%\$"
    r"|\$-?(\\[dt]?frac\{\d{1,15}\}\{[1-9]\d{0,14}\}|\d{1,15}/[1-9]\d{0,14})\$"
)
_PATIENCE = 3.0  # seconds before a message is printed
_DIGITS = re.compile(r"\d+(\.\d+)?")
# Units and names, whose digits are not part of the value: x_1, 5 \text{ m}^2.
_NO_VALUE = re.compile(
    r"\\(?:text|mathrm|mbox|textbf|operatorname)\s*\{[^{}]*\}(\s*\^\s*(\{[^{}]*\}|\d))?|_\s*(\{[^{}]*\}|\w)"
)


def check_golds(rows: Sequence[Row], fields: Sequence[str], golds: Sequence[str]) -> None:
    """Raise the row's error where its normalised gold answer, read from the field in `fields`, cannot be used."""
    unsure = {gold for gold in golds if not SURE.fullmatch(gold)}
    started, told = time.monotonic(), False
    problems: dict[str, str | None] = {}
    for row, field, gold in zip(rows, fields, golds, strict=True):
        if gold not in unsure:
            continue
        if gold not in problems:
            problems[gold] = gold_problem(gold)
        if (problem := problems[gold]) is not None:
            raise row.error(f"field {field!r} gives the gold answer {shown(gold)}, but {problem}")
        if not told and time.monotonic() - started > _PATIENCE:
            told = True
            print(f"checking how the reward reads {len(unsure)} different gold answers", file=sys.stderr, flush=True)


def gold_problem(solution: str) -> str | None:
    """What is wrong with a normalised gold answer: the reward rejects the answer itself, or accepts a changed one.

    The changed answers differ from the gold in its first or its last number. They detect a gold answer of which only a
    part is read. None where nothing is wrong.
    """
    inner = solution[1:-1] if len(solution) > 2 and solution[0] == solution[-1] == "$" else solution
    if EXPONENT.search(inner):
        return "the reward does not read exponents written with e: write the number out, or as LaTeX (10^{-5})"
    around = "{}" if "$" in inner else "\\boxed{{{}}}"  # text around mathematics is not mathematics itself
    value = _score(around.format(inner if "$" not in inner else solution), solution)
    if value is None:
        return "the reward cannot read it: write it as LaTeX or as a number"
    if not value:
        return "the reward would reject it as a model's answer: write it as LaTeX or as a number"
    text = inner if "$" not in inner else solution
    numbers = _numbers(text)
    for span in {*numbers[:1], *numbers[-1:]}:
        # Two changes: one may be right by chance, as the binomial 5 over 3 equals 5 over 2.
        others = [around.format(_changed(text, *span, by)) for by in (1, 2)]
        if all(_score(other, solution) for other in others):
            return f"the reward reads only a part of it and would accept {others[0]} as right: write it as LaTeX"
    if not numbers and _score("\\boxed{70}", solution):
        return "the reward would accept any answer as right: write it as LaTeX or as a number"
    return None


def _score(content: str, solution: str) -> float | None:
    return CHECKER.check("accuracy_reward", content, solution, None, CHECKER.start_batch())[0]


def _numbers(text: str) -> list[tuple[int, int]]:
    hidden = [match.span() for match in _NO_VALUE.finditer(text)]
    spans = [match.span() for match in _DIGITS.finditer(text)]
    return [span for span in spans if not any(start <= span[0] < end for start, end in hidden)]


def _changed(text: str, start: int, end: int, by: int) -> str:
    """`text` with another leading digit in the number at `start`."""
    number = text[start:end]
    at = next((i for i, digit in enumerate(number) if digit in "123456789"), 0)
    return text[:start] + number[:at] + str((int(number[at]) + by - 1) % 9 + 1) + number[at + 1 :] + text[end:]
