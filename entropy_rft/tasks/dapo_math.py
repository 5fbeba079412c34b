"""DAPO-Math-17k: competition problems with integer answers, from the hub or from JSON Lines."""

from __future__ import annotations

from os import PathLike
from typing import Any

from entropy_rft.tasks.gold_check import check_golds
from entropy_rft.tasks.math_task import BOXED, math_task
from entropy_rft.tasks.rows import Row, read_rows
from entropy_rft.tasks.task import Task

HUB = "open-r1/DAPO-Math-17k-Processed"  # the original repeats its 17 thousand problems a hundred times
_CONFIG = "all"

# The original wraps each problem in a request for "Answer: ...", which the reward, reading \boxed{}, cannot score.
_PREFIX = "Solve the following math problem step by step."
_SUFFIX = "Remember to put your answer on its own line after"
_QUESTION_FIELDS = ("question", "problem", "prompt")
_ANSWER_FIELDS = ("reward_model", "answer", "solution")


def load(
    path: str | PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    instruction: str | None = None,
    answer_format: str | None = BOXED,
    thinking: bool = True,
) -> Task:
    """DAPO-Math-17k; the hub has the split `train` only.

    A row has its problem in `prompt` (chat messages or text), `question` or `problem`, and its answer in
    `reward_model.ground_truth`, `answer` or `solution`. The original's request to write "Answer: ..." is removed from
    the problem, since `answer_format` asks for `\\boxed{}`.
    """
    rows = read_rows(path, HUB, _CONFIG, split)
    pairs = [(_question(row), _gold(row)) for row in rows]
    check_golds(rows, [_first(row, _ANSWER_FIELDS) for row in rows], [gold for _, gold in pairs])
    return math_task("dapo_math", split, pairs, {}, limit, seed, instruction, answer_format, thinking)


def _question(row: Row) -> str:
    field = _first(row, _QUESTION_FIELDS)
    value = row.value(field, (str, list), "text or a list of messages")
    if isinstance(value, list):
        value = _user_message(row, field, value)
    problem = unwrap(row.checked(field, value))
    if not problem:
        raise row.error(f"field {field!r} has no problem inside its request for an answer")
    return problem


def _user_message(row: Row, field: str, messages: list[Any]) -> str:
    users = [m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    if len(users) != 1 or len(messages) != 1 or not isinstance(users[0], str):
        raise row.error(f'field {field!r} must be one message {{"role": "user", "content": text}}')
    return users[0]


def unwrap(prompt: str) -> str:
    """The problem without the original's request before and after it; unchanged when it has none."""
    if not prompt.startswith(_PREFIX):
        return prompt.strip()
    _, _, problem = prompt.partition("\n\n")
    return problem.rpartition(_SUFFIX)[0].strip() if _SUFFIX in problem else problem.strip()


def _gold(row: Row) -> str:
    field = _first(row, _ANSWER_FIELDS)
    if field == "reward_model":
        return Row(row.where, row.value(field, (dict,), "an object")).answer("ground_truth")
    return row.answer(field)


def _first(row: Row, fields: tuple[str, ...]) -> str:
    for field in fields:
        if field in row.fields:
            return field
    *others, last = map(repr, fields)
    raise row.error(f"field {', '.join(others)} or {last} is missing")
