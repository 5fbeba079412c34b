"""What the tasks share whose questions are generated: splits, their sizes, and the checks of `split` and `levels`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.tasks.task import Task, chat_prompt, rewards

SPLITS = ("train", "validation", "test")
SIZES = {"train": 4096, "validation": 600, "test": 600}
"""Questions of each split where no `limit` says how many."""


def check_split(task: str, split: str) -> None:
    """Raise the ValueError that names a split which generated tasks do not have."""
    if split not in SPLITS:
        raise UserValueError(f"task {task!r} has no split {split!r}; its splits: {', '.join(SPLITS)}")


def by_level(
    name: str,
    questions: Callable[[str, Sequence[int], int], Iterator[Any]],
    level_of: Callable[[Any], int],
    known: Sequence[int],
    unit: str,
    *,
    path: str | PathLike[str] | None,
    split: str,
    limit: int | None,
    seed: int,
    levels: int | Iterable[int],
    instruction: str | None,
    answer_format: str | None,
    thinking: bool,
) -> Task:
    """A task whose questions have levels.

    Args:
        name: of the task.
        questions: of a split, levels and a seed; each has a `question` and an `answer`.
        level_of: a question, for the column `difficulty`.
        known: the levels that there are, in order.
        unit: what a level counts, for the error.
        path, split, limit, seed, levels, instruction, answer_format, thinking: as of `load_task`.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    from datasets import Dataset

    if path is not None:
        raise UserValueError(f"task {name!r} generates its questions and reads no file, but path is {str(path)!r}")
    check_split(name, split)
    levels = [levels] if isinstance(levels, int) else list(levels)
    if not levels or any(isinstance(level, bool) or level not in known for level in levels):
        raise UserValueError(f"levels must be {unit} from {known[0]} to {known[-1]}, not {levels!r}")
    items = list(islice(questions(split, levels, seed), limit or SIZES[split]))
    dataset = Dataset.from_dict(
        {
            "prompt": [chat_prompt(item.question, instruction, answer_format) for item in items],
            "solution": [str(item.answer) for item in items],
            "difficulty": [level_of(item) for item in items],
        }
    )
    return Task(name=name, split=split, dataset=dataset, reward_funcs=rewards(thinking))
