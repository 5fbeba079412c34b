"""On-policy batches with GRPO's advantages, flattened to their tokens, to study a single step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entropy_rft.entropy import phase_masks
from entropy_rft.errors import UserValueError
from entropy_rft.sampling import ThinkEndMarker
from entropy_rft.sampling.completion import Completion
from entropy_rft.tasks import load_task
from studies.methods.answers import sample_answers


@dataclass(frozen=True)
class SamplingSettings:
    """What is sampled: `batches` optimisation batches of `questions` groups of `samples` completions.

    Raises:
        ValueError: naming the field that is out of range.
    """

    model: str = "tiny_reasoner"
    task: str = "arithmetic"
    split: str = "train"
    batches: int = 12
    questions: int = 8
    samples: int = 8
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batches", "questions", "samples", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.samples < 2:
            raise UserValueError(f"samples must be at least 2 to give a group's advantages, got {self.samples}")


@dataclass(frozen=True)
class Batch:
    """One optimisation batch. N valid completion tokens, R rows of L tokens, padded on the right."""

    input_ids: Tensor  # (R, L)
    attention_mask: Tensor  # (R, L)
    predicts: Tensor  # (R, L) bool: the positions whose logits are a completion token's
    token_ids: Tensor  # (N,) the sampled tokens
    advantages: Tensor  # (N,) float64, each token its completion's
    phases: dict[str, Tensor]  # (N,) bool


def sample_batches(settings: SamplingSettings, model: Any, tokenizer: Any, progress: bool = True) -> list[Batch]:
    """On-policy completions with GRPO's advantages, one batch after another, each with its own questions."""
    task = load_task(
        settings.task, split=settings.split, limit=settings.batches * settings.questions, seed=settings.seed
    )
    marker = ThinkEndMarker(tokenizer, "</think>")
    found = sample_answers(
        model, tokenizer, task, marker,
        samples=settings.samples, max_tokens=settings.max_tokens, seed=settings.seed, progress=progress,
    )  # fmt: skip
    groups = found.groups
    advantages = torch.stack([group_advantages(group) for group in found.right])
    size = settings.questions
    return [
        _batch(
            [completion for group in groups[start : start + size] for completion in group],
            advantages[start : start + size].flatten(),
            marker.ids,
        )
        for start in range(0, len(groups), size)
    ]


def group_advantages(group: Sequence[bool | None]) -> Tensor:
    """GRPO's advantages of a question's answers, (samples,) float64; 0 for one that cannot be scored, which is left out
    of the group's mean and deviation."""
    correct = torch.tensor([float("nan") if verdict is None else verdict for verdict in group], dtype=torch.float64)
    known = correct[correct.isfinite()]
    spread = known.std() if len(known) > 1 else torch.zeros((), dtype=torch.float64)
    return ((correct - correct.nanmean()) / (spread + 1e-4)).nan_to_num(0.0)


def _batch(completions: list[Completion], advantages: Tensor, marker: list[int]) -> Batch:
    width = max(len(c.prompt_ids) + len(c.token_ids) for c in completions)
    input_ids = torch.zeros(len(completions), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    predicts = torch.zeros_like(input_ids, dtype=torch.bool)
    longest = max(len(c.token_ids) for c in completions)
    own = torch.zeros(len(completions), longest, dtype=torch.long)
    mask = torch.zeros_like(own)
    for row, completion in enumerate(completions):
        ids = completion.prompt_ids + completion.token_ids
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
        predicts[row, len(completion.prompt_ids) - 1 : len(ids) - 1] = True
        own[row, : len(completion.token_ids)] = torch.tensor(completion.token_ids)
        mask[row, : len(completion.token_ids)] = 1
    thinking, answer = phase_masks(own, mask, marker)
    valid = mask.bool()
    return Batch(
        input_ids,
        attention_mask,
        predicts,
        own[valid],
        advantages.unsqueeze(1).expand(own.shape)[valid],
        {"thinking": thinking[valid], "answer": answer[valid]},
    )
