"""Questions and answers from any JSON Lines file."""

from __future__ import annotations

from os import PathLike
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.rewards.parameters import FROM_THE_TRAINER
from entropy_rft.tasks.gold_check import check_golds
from entropy_rft.tasks.math_task import BOXED, math_task
from entropy_rft.tasks.rows import Row, read_jsonl
from entropy_rft.tasks.task import Task

_KINDS = {
    bool: "true or false",
    str: "text",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): None,
}


def load(
    path: str | PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    question_column: str = "question",
    answer_column: str = "answer",
    instruction: str | None = None,
    answer_format: str | None = BOXED,
    thinking: bool = True,
) -> Task:
    """The file at `path`: the question is in `question_column`, the gold answer (text or a number) in `answer_column`.

    All other columns are kept, except that `prompt` and `solution` are the task's own. A row without such a
    column has None there. All values of a column must be of one kind.
    """
    if path is None:
        raise UserValueError("task 'jsonl' reads a file: give its path")
    rows = read_jsonl(path)
    pairs = [(row.text(question_column), row.answer(answer_column)) for row in rows]
    check_golds(rows, [answer_column] * len(rows), [gold for _, gold in pairs])
    columns = _columns(rows, leave_out=(question_column, answer_column))
    return math_task("jsonl", split, pairs, columns, limit, seed, instruction, answer_format, thinking)


def _columns(rows: list[Row], leave_out: tuple[str, str]) -> dict[str, list[Any]]:
    """The other columns of all rows, checked for one kind of value each (a Dataset has one type a column)."""
    kinds: dict[str, str | None] = {}
    for row in rows:
        for column, value in row.fields.items():
            if column in FROM_THE_TRAINER:
                raise row.error(
                    f"field {column!r} would hide what the trainer passes to rewards under that name: rename it"
                )
            kind, before = _KINDS[type(value)], kinds.get(column)
            if kind and before and kind != before and column not in leave_out:
                raise row.error(f"field {column!r} is {kind}, but {before} in an earlier row")
            kinds[column] = before or kind
    return {column: [row.fields.get(column) for row in rows] for column in kinds if column not in leave_out}
