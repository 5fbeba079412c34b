"""GSM8K: word problems of primary school, from the hub or from JSON Lines in OpenAI's own layout."""

from __future__ import annotations

from os import PathLike

from entropy_rft.tasks.answers import is_number, normalise_answer
from entropy_rft.tasks.gold_check import check_golds
from entropy_rft.tasks.math_task import BOXED, math_task
from entropy_rft.tasks.rows import Row, read_rows
from entropy_rft.tasks.task import Task

HUB = "openai/gsm8k"
_MARKER = "####"


def load(
    path: str | PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    instruction: str | None = None,
    answer_format: str | None = BOXED,
    thinking: bool = True,
) -> Task:
    """GSM8K; the hub has the splits `train` (7,473) and `test` (1,319)."""
    rows = read_rows(path, HUB, "main", split)
    pairs = [(row.text("question"), gold(row)) for row in rows]
    check_golds(rows, ["answer"] * len(rows), [answer for _, answer in pairs])
    return math_task("gsm8k", split, pairs, {}, limit, seed, instruction, answer_format, thinking)


def gold(row: Row) -> str:
    """What follows `####` in the field `answer`: the worked solution's result, a number."""
    _, marker, result = row.text("answer").rpartition(_MARKER)
    if not marker:
        raise row.error(f"field 'answer' has no {_MARKER!r} before the result")
    if not result.strip():
        raise row.error(f"field 'answer' has no result after {_MARKER!r}")
    answer = normalise_answer(result)
    if not is_number(answer):
        raise row.error(f"field 'answer' ends in {result.strip()!r} after {_MARKER!r}, which is not a number")
    return answer
