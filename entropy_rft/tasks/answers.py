"""Gold answers in the form that TRL's correctness rewards read right."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[+-]?(\d+(\.\d+)?|\.\d+)")
_GROUPED = re.compile(r"(?<!\d)\d{1,3}(,\d{3})+(?!\d)")
_BOXED = re.compile(r"\\boxed\s*\{(.*)\}", re.DOTALL)
# LaTeX writes thousands as 1{,}234 or 1\,234, and money as \$5.
_LATEX_COMMA = re.compile(r"(?<=\d)(\{,\}|,?\\[,!]\s*)(?=\d{3}(?!\d))")
_MONEY = re.compile(r"^([+-]?)\\?\$\s*(?=[+-]?[\d.])")


def normalise_answer(text: str) -> str:
    """The answer alone: a number without money sign, thousands commas or full stop, or else LaTeX between `$`.

    "1,234" and "$1,234." give "1234"; `\\frac{1}{2}` gives `$\\frac{1}{2}$`, because math-verify reads bare LaTeX
    wrongly (`2\\sqrt{3}` as 2, `50\\%` as 50).
    """
    answer = text.strip()
    while boxed := _BOXED.fullmatch(answer):
        answer = boxed[1].strip()
    number = _number(answer)
    if number is not None:
        return number
    return answer if "$" in answer else f"${answer}$"


def is_number(answer: str) -> bool:
    """Whether a normalised answer is a plain decimal number."""
    return _NUMBER.fullmatch(answer) is not None


def _number(answer: str) -> str | None:
    if len(answer) > 2 and answer[0] == answer[-1] == "$":
        answer = answer[1:-1].strip()
    plain = _MONEY.sub(r"\1", answer.replace("\N{MINUS SIGN}", "-")).removesuffix(".")
    plain = _LATEX_COMMA.sub("", plain)
    if _GROUPED.search(plain):
        plain = _GROUPED.sub(lambda match: match[0].replace(",", ""), plain, count=1)
    return plain.removeprefix("+") if _NUMBER.fullmatch(plain) else None
