"""What an answer was: right or not, how long, how sure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from entropy_rft.entropy import TokenStatistics
from entropy_rft.sampling import Completion, ThinkEndMarker, score_completions


@dataclass(frozen=True, slots=True)
class CompletionRecord:
    """One completion, boiled down; entropies are means over its tokens in nats, ``None`` for a phase without any."""

    tokens: int
    truncated: bool
    entropy: float | None
    entropy_thinking: float | None
    entropy_answer: float | None


def describe(
    model: Any, groups: Sequence[Sequence[Completion]], marker: ThinkEndMarker, batch_size: int
) -> list[list[CompletionRecord]]:
    """Length and entropies of each completion, in one scoring pass over full distributions at temperature 1."""
    flat = [completion for group in groups for completion in group]
    scored = score_completions(model, flat, batch_size=batch_size)
    answers = iter([_answer(*pair, marker) for pair in zip(flat, scored, strict=True)])
    return [[next(answers) for _ in group] for group in groups]


def _answer(completion: Completion, statistics: TokenStatistics, marker: ThinkEndMarker) -> CompletionRecord:
    ids = torch.tensor([completion.token_ids], dtype=torch.long)
    thinking, answer = (phase[0] for phase in marker.phases(ids, torch.ones_like(ids)))
    entropy = statistics.entropy.double()

    def mean(chosen: torch.Tensor) -> float | None:
        return float(entropy[chosen].mean()) if bool(chosen.any()) else None

    return CompletionRecord(
        tokens=len(completion.token_ids),
        truncated=completion.truncated,
        entropy=float(entropy.mean()) if len(entropy) else None,
        entropy_thinking=mean(thinking),
        entropy_answer=mean(answer),
    )


def chunk_seed(seed: int, chunk: int) -> int:
    """The seed of a chunk's samples, so that it does not depend on which process draws them."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/chunk {chunk}".encode(), digest_size=4).digest(), "big") >> 1
