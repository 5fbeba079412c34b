"""Several answers to each question of a task, and which of them are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
