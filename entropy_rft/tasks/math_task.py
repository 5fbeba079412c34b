"""Makes a `Task` from questions and gold answers, for the tasks that read files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.tasks.rows import sample
from entropy_rft.tasks.task import Task, chat_prompt, rewards

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
"""The usual request for an answer that the reward can read."""


def math_task(
    name: str,
    split: str,
    pairs: Sequence[tuple[str, str]],
    columns: Mapping[str, Sequence[Any]],
    limit: int | None,
    seed: int,
    instruction: str | None,
    answer_format: str | None,
    thinking: bool,
) -> Task:
    """The task that asks the questions of `pairs` (question, normalised gold answer).

    `columns` are further columns, as long as `pairs`; `prompt` and `solution` among them are replaced by
    the task's own. The other arguments are those of `load_task`.
    """
    from datasets import Dataset

    chosen = sample(range(len(pairs)), limit, seed)
    kept = {column: [values[i] for i in chosen] for column, values in columns.items()}
    kept |= {
        "prompt": [chat_prompt(pairs[i][0], instruction, answer_format) for i in chosen],
        "solution": [pairs[i][1] for i in chosen],
    }
    order = ["prompt", "solution", *(column for column in columns if column not in ("prompt", "solution"))]
    try:
        dataset = Dataset.from_dict({column: kept[column] for column in order})
    except (
        ValueError,
        TypeError,
        OverflowError,
        NotImplementedError,
    ) as error:  # pyarrow's errors, by their base classes
        raise UserValueError(f"task {name!r}: its further columns cannot be stored as a table: {error}") from error
    return Task(name=name, split=split, dataset=dataset, reward_funcs=rewards(thinking))
