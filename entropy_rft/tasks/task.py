"""What a task is: questions, their gold answers, and the rewards that check completions against them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

from entropy_rft.errors import UserTypeError, UserValueError
from entropy_rft.suggestions import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

Reward = Callable[..., list[float | None]]

# One module per task; each has a `load` whose keyword arguments after `seed` are the task's options.
_TASKS = {
    "arithmetic": "entropy_rft.tasks.arithmetic",
    "modulo": "entropy_rft.tasks.modulo",
    "gsm8k": "entropy_rft.tasks.gsm8k",
    "dapo_math": "entropy_rft.tasks.dapo_math",
    "jsonl": "entropy_rft.tasks.jsonl",
    "reasoning_gym": "entropy_rft.tasks.reasoning_gym",
}
TASK_NAMES = tuple(_TASKS)
_TYPES: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("instruction", (str, type(None)), "text or None"),
    ("answer_format", (str, type(None)), "text or None"),
    ("thinking", (bool,), "true or false"),
    ("levels", (int, list, tuple), "a number or a list of numbers"),
    ("partial_credit", (bool,), "true or false"),
    ("level_by", (str, type(None)), "text or None"),
    ("question_column", (str,), "text"),
    ("answer_column", (str,), "text"),
)
_COMMON = ("path", "split", "limit", "seed")


@dataclass(frozen=True)
class Task:
    """Questions with checkers, ready for a TRL trainer.

    `dataset` has the columns `prompt` (a list of chat messages) and `solution` (the gold answer alone, a string), and
    any others that the task gives. `reward_funcs` are TRL reward functions that score completions of those prompts; all
    of them can be pickled.
    """

    name: str
    split: str
    dataset: Dataset
    reward_funcs: list[Reward] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.dataset)


def load_task(
    name: str,
    *,
    path: str | PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Task:
    """Load the task called `name`: one of `arithmetic`, `modulo`, `gsm8k`, `dapo_math`, `jsonl`, `reasoning_gym`.

    Args:
        path: a local JSON Lines file to read instead of the Hugging Face hub (`jsonl` needs one; `arithmetic`, `modulo`
            and `reasoning_gym` take none). A local file IS the split: all its rows are loaded and `split` only names
            them.
        split: which part of a generated or hub data set.
        limit: at most this many questions: a random sample, drawn with `seed` and kept in the source's order. The
            generated tasks make that many instead, and a smaller limit gives the start of a larger one.
        seed: of the sample, or of the generated questions.
        options: the task's own. Every task has `instruction` (a system message, none by default), `answer_format` (a
            text that follows the question after a blank line; it asks for `\\boxed{}`, except for `arithmetic` and
            `modulo`, whose models know) and `thinking` (True: only what follows `</think>` is checked, and a completion
            without it is wrong; False: the whole completion is checked, for models that do not think in a block).
            `arithmetic` and `modulo` also have `levels`, and `jsonl` `question_column` and `answer_column`. Those of
            `reasoning_gym`, which needs a `generator`, are in :func:`entropy_rft.tasks.reasoning_gym.load`.

    Raises:
        ValueError: an unknown name, option or split, or a malformed row; the message names it, and for a row the file,
            the line and the field.
        TypeError: an argument of the wrong type.
    """
    if name not in _TASKS:
        raise UserValueError(f"unknown task {name!r}{did_you_mean(name, TASK_NAMES)} (known: {', '.join(TASK_NAMES)})")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise UserTypeError(f"limit must be an integer or None, not {limit!r}")
    if limit is not None and limit < 1:
        raise UserValueError(f"limit must be at least 1, not {limit}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserTypeError(f"seed must be an integer, not {seed!r}")
    if not isinstance(split, str):
        raise UserTypeError(f"split must be a string, not {split!r}")
    load = import_module(_TASKS[name]).load
    parameters = inspect.signature(load).parameters
    known = [option for option in parameters if option not in _COMMON]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())  # it checks them
    for option in options:
        if option not in known and not open_ended:
            raise UserValueError(
                f"task {name!r} has no option {option!r}{did_you_mean(option, known)} (it has: {', '.join(known)})"
            )
    for option, kinds, expected in _TYPES:
        if option in options and not isinstance(options[option], kinds):
            raise UserTypeError(f"{option} must be {expected}, not {options[option]!r}")
    return load(path=path, split=split, limit=limit, seed=seed, **options)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse an option, typed by a user, that is an argument of :func:`load_task` itself.

    Raises:
        ValueError: there is one; the message names it.
    """
    for option in options:
        if option in ("name", *_COMMON):
            raise UserValueError(f"{option!r} is not an option of a task: give it in its own field")


def rewards(thinking: bool) -> list[Reward]:
    """TRL's correctness reward: after `</think>` only, or over the whole completion for models that do not think."""
    from trl.rewards import accuracy_reward, reasoning_accuracy_reward

    return [reasoning_accuracy_reward if thinking else accuracy_reward]


def chat_prompt(question: str, instruction: str | None, answer_format: str | None) -> list[dict[str, str]]:
    """The messages that ask `question`: `instruction` is the system's, `answer_format` ends the user's."""
    content = f"{question}\n\n{answer_format}" if answer_format else question
    system = [{"role": "system", "content": instruction}] if instruction else []
    return [*system, {"role": "user", "content": content}]


def level_of(row: Mapping[str, Any]) -> Any:
    """How difficult a question is: its column `difficulty` or else `level`; None where that is no number or word."""
    value = row.get("difficulty")
    if value is None:
        value = row.get("level")
    return value if isinstance(value, str | int | float) else None


def task_rows(task: Any) -> list[dict[str, Any]]:
    """The questions of a task.

    Raises:
        ValueError: it has none, or no `prompt` column, or no reward.
    """
    rows = [dict(row) for row in task.dataset]
    if not rows:
        raise UserValueError(f"task {task.name!r} has no questions in the split {task.split!r}")
    if "prompt" not in rows[0]:
        raise UserValueError(f"the data set of task {task.name!r} has no column 'prompt', only {', '.join(rows[0])}")
    if not task.reward_funcs:
        raise UserValueError(f"task {task.name!r} has no reward_funcs: no answer can be checked")
    return rows
