"""Several answers to each question of a task, and which of them are right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studies.methods.plan import Measurement

if TYPE_CHECKING:  # importing them takes seconds
    from entropy_rft.sampling import ThinkEndMarker
    from entropy_rft.sampling.completion import Completion


@dataclass(frozen=True)
class Answers:
    """One list a question, in the order they were asked.

    Attributes:
        rows: the questions.
        groups: their completions.
        right: whether each is right; None where it cannot be scored.
    """

    rows: list[dict[str, Any]]
    groups: list[list[Completion]]
    right: list[list[bool | None]]

    @property
    def flat(self) -> list[Completion]:
        """All completions, question by question."""
        return [completion for group in self.groups for completion in group]


def questions_of(fields: Mapping[str, Any], asked: Measurement) -> Any:
    """The task of a recipe's `fields`, with the questions of a measurement.

    They are those of seed 0 whatever a run's seed is, so that runs are compared question by question.
    """
    from entropy_rft.tasks import load_task

    options = dict(fields.get("task_options") or {})
    return load_task(fields.get("task", "arithmetic"), split=asked.split, limit=asked.questions, seed=0, **options)


def marker_of(fields: Mapping[str, Any], tokenizer: Any) -> ThinkEndMarker:
    """What ends the thinking, by a recipe's `fields`."""
    from entropy_rft.sampling import ThinkEndMarker

    return ThinkEndMarker(tokenizer, fields.get("think_end_token", "</think>"))


def sample_answers(
    model: Any,
    tokenizer: Any,
    task: Any,
    marker: ThinkEndMarker,
    *,
    samples: int,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 256,
    progress: bool = False,
) -> Answers:
    """Ask `model` every question of `task`; the task's first reward says what is right.

    Args:
        model, tokenizer: that answer.
        task: with `dataset` and `reward_funcs`.
        marker: ends the thinking.
        samples: of each question.
        max_tokens: limit on one completion, tokens.
        seed, temperature: of the sampling.
        batch_size: completions at a time.
        progress: show a bar, on a terminal.
    """
    from entropy_rft.sampling import TransformersSampler, verdicts
    from entropy_rft.tasks import task_rows

    rows = task_rows(task)
    groups = TransformersSampler(model, tokenizer, batch_size=batch_size).sample(
        [row["prompt"] for row in rows],
        samples=samples,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        progress=progress,
    )
    return Answers(rows, groups, verdicts(task.reward_funcs[0], rows, groups, marker))
