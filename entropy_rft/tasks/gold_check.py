"""Whether the reward reads a gold answer as it stands: itself, boxed, is right, and what is beside it is wrong."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence

from entropy_rft.rewards.checking import CHECKER, EXPONENT
from entropy_rft.tasks.rows import Row, shown

# What the reward reads right, as the tests show: integers, decimals as far as it compares them, fractions, percentages.
SURE = re.compile(
    r"-?(0|[1-9]\d{0,14})|-?\d{0,15}\.\d{1,5}|\$-?\d{1,15}\\%\$"
    r"|\$-?(\\[dt]?frac\{\d{1,15}\}\{[1-9]\d{0,14}\}|\d{1,15}/[1-9]\d{0,14})\$"
)
_PATIENCE = 3.0  # seconds without a word
_DIGITS = re.compile(r"\d+(\.\d+)?")
# Units and names, whose digits are none of the value: x_1, 5 \text{ m}^2.
_NO_VALUE = re.compile(
    r"\\(?:text|mathrm|mbox|textbf|operatorname)\s*\{[^{}]*\}(\s*\^\s*(\{[^{}]*\}|\d))?|_\s*(\{[^{}]*\}|\w)"
)


def check_golds(rows: Sequence[Row], fields: Sequence[str], golds: Sequence[str]) -> None:
    """Raise the row's error where its normalised gold answer, of the field of that name, cannot be used."""
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
    """What is wrong with a normalised gold answer: that the reward takes itself for wrong, or its neighbour for right.

    The neighbours differ from the gold in its first or its last number, so that a gold of which only a part is read is
    found out. None where nothing is wrong.
    """
    inner = solution[1:-1] if len(solution) > 2 and solution[0] == solution[-1] == "$" else solution
    if EXPONENT.search(inner):
        return "the reward does not read exponents written with e: write the number out, or as LaTeX (10^{-5})"
    around = "{}" if "$" in inner else "\\boxed{{{}}}"  # text around its mathematics is no mathematics itself
    value = _score(around.format(inner if "$" not in inner else solution), solution)
    if value is None:
        return "the reward cannot read it: write it as LaTeX or as a number"
    if not value:
        return "the reward would not take it for right where a model writes it: write it as LaTeX or as a number"
    text = inner if "$" not in inner else solution
    numbers = _numbers(text)
    for span in {*numbers[:1], *numbers[-1:]}:
        # Two of them: one may be right by chance, as 5 over 3 is 5 over 2.
        others = [around.format(_changed(text, *span, by)) for by in (1, 2)]
        if all(_score(other, solution) for other in others):
            return f"the reward reads only a part of it and would take {others[0]} for right: write it as LaTeX"
    if not numbers and _score("\\boxed{70}", solution):
        return "the reward would take any answer for right: write it as LaTeX or as a number"
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
