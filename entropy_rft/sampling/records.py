"""What is kept of a completion: its length, and the model's entropy in each phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from entropy_rft.entropy import TokenStatistics
from entropy_rft.sampling.completion import Completion
from entropy_rft.sampling.marker import ThinkEndMarker
from entropy_rft.sampling.progress import progress_bar
from entropy_rft.sampling.scoring import score_completions


@dataclass(frozen=True, slots=True)
class CompletionRecord:
    """The length and the entropies of one completion.

    Attributes:
        tokens: its length, end-of-sequence token included.
        thinking_tokens: before the end-of-thinking marker; all of them where it is missing.
        answer_tokens: after it.
        truncated: the token limit was reached.
        marker: whether it has the marker.
        entropy: sum over its tokens, nats; of the model's own distribution, at temperature 1 unless another was given.
        entropy_thinking: the same over the thinking.
        entropy_answer: the same over the answer.
    """

    tokens: int
    thinking_tokens: int
    answer_tokens: int
    truncated: bool
    marker: bool
    entropy: float
    entropy_thinking: float
    entropy_answer: float

    @property
    def mean_entropies(self) -> dict[str, float | None]:
        """The entropies as means over their tokens, by the names above; ``None`` for a phase without tokens."""
        return {
            "entropy": self.entropy / self.tokens if self.tokens else None,
            "entropy_thinking": self.entropy_thinking / self.thinking_tokens if self.thinking_tokens else None,
            "entropy_answer": self.entropy_answer / self.answer_tokens if self.answer_tokens else None,
        }

    @property
    def phase_entropies(self) -> tuple[float, float]:
        """``(H_think, H_answer)`` as PEAR takes them: means over the phase's tokens, nats; 0 for an empty phase."""
        means = self.mean_entropies
        return means["entropy_thinking"] or 0.0, means["entropy_answer"] or 0.0


def phases_of(completion: Completion, marker: ThinkEndMarker) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens of a completion are thinking, and which answer; each ``(tokens,)``, bool.

    Without a marker everything is thinking.
    """
    ids = torch.tensor([completion.token_ids], dtype=torch.long)
    thinking, answer = marker.phases(ids, torch.ones_like(ids))
    return thinking[0], answer[0]


def record_of(completion: Completion, statistics: TokenStatistics, marker: ThinkEndMarker) -> CompletionRecord:
    """The record of one completion.

    Args:
        statistics: of its tokens, each tensor ``(tokens,)``.
        marker: ends the thinking.
    """
    thinking, answer = phases_of(completion, marker)
    entropy = statistics.entropy.double()
    return CompletionRecord(
        tokens=len(completion.token_ids),
        thinking_tokens=int(thinking.sum()),
        answer_tokens=int(answer.sum()),
        truncated=completion.truncated,
        marker=not bool(thinking.all()),
        entropy=float(entropy.sum()),
        entropy_thinking=float(entropy[thinking].sum()),
        entropy_answer=float(entropy[answer].sum()),
    )


def record_completions(
    model: Any,
    completions: Sequence[Completion],
    marker: ThinkEndMarker,
    batch_size: int,
    progress: bool,
    temperature: float = 1.0,
) -> list[CompletionRecord]:
    """The records of many completions, in scoring passes of `batch_size` at a time.

    Args:
        model: scores them.
        marker: ends the thinking.
        progress: show a bar, on a terminal.
        temperature: divides the logits; 1 gives the model's own distribution.
    """
    # Batch by batch, because the statistics of every token of an evaluation may not fit in memory.
    order = sorted(range(len(completions)), key=lambda i: -len(completions[i].token_ids))
    records: dict[int, CompletionRecord] = {}
    with progress_bar("entropies", len(order), progress) as advance:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            scored = score_completions(
                model, [completions[i] for i in batch], temperature=temperature, batch_size=batch_size
            )
            for i, statistics in zip(batch, scored, strict=True):
                records[i] = record_of(completions[i], statistics, marker)
            advance(len(batch), "")
    return [records[i] for i in range(len(completions))]
