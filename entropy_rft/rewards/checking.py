"""Checks answers with a time limit.

math-verify evaluates the expression in an answer. A tower of powers or a factorial can be too large for any machine.
math-verify's own time limits do not interrupt C code, and do not exist outside the main thread. So an answer that
cannot contain such an expression (text, numbers, a box around them) is checked here, by TRL's reward as it is. Every
other answer is checked by the same reward in a separate process, which the kernel ends after some seconds of computing.
An answer whose check is ended counts as wrong.

The completions of a group often have the same answer, and a check takes milliseconds. So what was checked here is
remembered.
"""

from __future__ import annotations

import atexit
import re
from functools import lru_cache
from typing import Any

from entropy_rft.rewards.checking_worker import check
from entropy_rft.rewards.timed import Budget, TimedProcess

# No powers, factorials and exponents, and no commands except those of text, boxes and spacing.
_HARMLESS = re.compile(r"(?:[^\\^!*]|\*(?!\*)|\\(?:boxed|text)\b|\\[$%,;:() \[\]{}\n])*")
EXPONENT = re.compile(r"\d[eE][+-]?\d")
_LONG_NUMBER = re.compile(r"\d{40}")
_LONGEST = 4_000  # characters
_REMEMBERED = 4_096  # answers with their gold


def is_harmless(text: str) -> bool:
    """Whether nothing in `text` can make a number much longer than the text."""
    return (
        len(text) <= _LONGEST
        and _HARMLESS.fullmatch(text) is not None
        and not EXPONENT.search(text)
        and not _LONG_NUMBER.search(text)
    )


class Checker(TimedProcess):
    """Applies TRL's accuracy rewards to one completion at a time; safe in threads, and after a fork."""

    def __init__(self) -> None:
        super().__init__("entropy_rft.rewards.checking_worker")

    def check(
        self, reward: str, content: str, solution: str | None, delimiters: list[str] | None, budget: Budget
    ) -> tuple[float | None, dict[str, Any]]:
        """TRL's `reward` of a completion, and the columns that it logs; 0 where the check does not end."""
        if solution is None:  # the row has no gold answer: TRL's function does not score it
            return check(reward, content, solution, delimiters)
        end, read = ("", content) if delimiters is None else _end_and_rest(content, delimiters)
        if is_harmless(read) and is_harmless(solution):
            # Nothing before the end of the thinking is read, and with it the same answer would be a new one each time.
            value, columns = _remembered(
                reward, end + read, solution, None if delimiters is None else tuple(delimiters)
            )
            return value, dict(columns)
        request = {"reward": reward, "content": content, "solution": solution, "delimiters": delimiters}
        reply = self.ask((reward, read, solution), request, budget, read)
        if reply is None:
            return 0.0, {"solution": solution, "gold_parsed": "[skipped]", "answer_parsed": "[too long to check]"}
        if "error" in reply:
            return 0.0, {"solution": solution, "gold_parsed": "[skipped]", "answer_parsed": "[cannot be checked]"}
        return reply["value"], reply["columns"]


CHECKER = Checker()
"""The checker of this process."""
atexit.register(CHECKER.close)


@lru_cache(maxsize=_REMEMBERED)
def _remembered(
    reward: str, content: str, solution: str, delimiters: tuple[str, ...] | None
) -> tuple[float | None, dict[str, Any]]:
    return check(reward, content, solution, None if delimiters is None else list(delimiters))


def after_thinking(content: str, delimiters: list[str]) -> str:
    """What a reward reads of a completion: the text after the last of the first of `delimiters` in it, or nothing."""
    return _end_and_rest(content, delimiters)[1]


def _end_and_rest(content: str, delimiters: list[str]) -> tuple[str, str]:
    """The first of `delimiters` that is in a completion, and the text after its last place; two empty texts without."""
    for delimiter in delimiters:
        if delimiter in content:
            return delimiter, content.split(delimiter)[-1]
    return "", ""  # without the end of the thinking nothing is read
