"""Gold answers in the form that TRL's correctness rewards read correctly."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

_NUMBER = re.compile(r"[+-]?(\d+(\.\d+)?|\.\d+)")
_GROUPED = re.compile(r"(?<!\d)\d{1,3}(,\d{3})+(?!\d)")
_BOXED = re.compile(r"\\boxed\s*\{(.*)\}", re.DOTALL)
_DELIMITERS = ((r"\[", r"\]"), (r"\(", r"\)"), ("$$", "$$"), ("$", "$"))
# LaTeX writes thousands as 1{,}234 or 1\,234, other texts as 1 234, 1'234 or 1_234.
_SEPARATED = re.compile(r"[+-]?\d{1,3}((\{,\}|,?\\[,!]\s*|[ '\N{RIGHT SINGLE QUOTATION MARK}_~])\d{3})+(\.\d+)?")
_SEPARATORS = re.compile(r"\{,\}|,?\\[,!]\s*|[ '\N{RIGHT SINGLE QUOTATION MARK}_~]")
_CURRENCY = r"(?:\\?\$|[\N{EURO SIGN}\N{POUND SIGN}\N{YEN SIGN}\N{INDIAN RUPEE SIGN}]|\b(?:USD|EUR|GBP)\b)"
_MONEY_BEFORE = re.compile(rf"^([+-]?)\s*{_CURRENCY}\s*(?=[+-]?[\d.])")
_MONEY_AFTER = re.compile(rf"(?<=\d)\s*{_CURRENCY}$")
_SCIENTIFIC = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)[eE][+-]?\d{1,3}")
_MIXED = re.compile(r"([+-]?)(\d+)\s+(\d+)\s*/\s*(\d+)")
_EUROPEAN = re.compile(r"[+-]?\d{1,3}((\.\d{3})+,\d+|(\.\d{3}){2,})")
_INDIAN = re.compile(r"[+-]?\d{1,2}(,\d{2})+,\d{3}(\.\d+)?")


def normalise_answer(text: str) -> str:
    """The answer alone: a number without currency, grouping or full stop, or else LaTeX between `$`.

    "1,234", "1 234" and "$1,234." give "1234", "1e-05" gives "0.00001"; "1 1/2" gives `$\\frac{3}{2}$`, and
    `\\frac{1}{2}` gives `$\\frac{1}{2}$`, because math-verify reads bare LaTeX wrongly (`2\\sqrt{3}` as 2).
    """
    answer = _unwrapped(text)
    plain = _plain(answer)
    if (number := _number(plain)) is not None:
        return number
    if mixed := _MIXED.fullmatch(plain):
        sign, whole, numerator, denominator = mixed.groups()
        top = int(whole) * int(denominator) + int(numerator)
        return f"${sign.strip('+')}\\frac{{{top}}}{{{denominator}}}$"
    if re.fullmatch(r"[+-]?[\d.,]+ ?%", plain):  # a bare % starts a comment in LaTeX
        answer = plain.replace("%", r"\%")
    elif any(_fraction(character) for character in answer):
        answer = plain
    answer = _braced(answer)
    return answer if "$" in answer else f"${answer}$"


def number_text(value: float) -> str:
    """A number from a file as text: without an exponent, and 5 for 5.0."""
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").removesuffix(".") if "." in text else text


def is_number(answer: str) -> bool:
    """Whether a normalised answer is a plain decimal number."""
    return _NUMBER.fullmatch(answer) is not None


def _unwrapped(text: str) -> str:
    """The answer without boxes and delimiters of mathematics around the whole of it."""
    answer, before = text.strip(), None
    while answer != before:
        before = answer
        if boxed := _BOXED.fullmatch(answer):
            answer = boxed[1].strip()
        for opening, closing in _DELIMITERS:
            inner = answer[len(opening) : -len(closing)]
            around = answer.startswith(opening) and answer.endswith(closing) and len(answer) > len(opening + closing)
            if around and opening not in inner and closing not in inner:
                answer = inner.strip()
    return answer


def _braced(answer: str) -> str:
    """`\\frac{1}{2}` for `\\frac12`, which the reward accepts only in a gold answer."""
    answer = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", answer)
    answer = re.sub(r"(\\[dt]?frac)\s*(\w)", r"\1{\2}", answer)
    return re.sub(r"(\\[dt]?frac\s*\{[^{}]*\})\s*(\w)", r"\1{\2}", answer)


def _plain(answer: str) -> str:
    """The answer with only ASCII digits, signs and spaces, without currency and without a full stop at its end."""
    # Each character by itself: ½ is 1/2, and 1½ a mixed number.
    fractions = "".join(f" {fraction}" if (fraction := _fraction(c)) else c for c in answer)
    plain = " ".join(fractions.replace("\N{MINUS SIGN}", "-").split()).removesuffix(".")
    plain = _MONEY_AFTER.sub("", _MONEY_BEFORE.sub(r"\1", plain))
    return plain.strip()


def _fraction(character: str) -> str:
    if character.isascii():
        return ""
    decomposed = unicodedata.normalize("NFKC", character)
    return decomposed.replace("\N{FRACTION SLASH}", "/") if "\N{FRACTION SLASH}" in decomposed else ""


def _number(plain: str) -> str | None:
    if _SEPARATED.fullmatch(plain):
        plain = _SEPARATORS.sub("", plain)
    elif _EUROPEAN.fullmatch(plain):
        plain = plain.replace(".", "").replace(",", ".")
    elif _INDIAN.fullmatch(plain):
        plain = plain.replace(",", "")
    elif _GROUPED.search(plain):
        plain = _GROUPED.sub(lambda match: match[0].replace(",", ""), plain, count=1)
    if _SCIENTIFIC.fullmatch(plain):
        plain = format(Decimal(plain), "f")
    return plain.removeprefix("+") if _NUMBER.fullmatch(plain) else None
