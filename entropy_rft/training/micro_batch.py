"""What this project adds to TRL's micro-batches, and how the rules read one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from entropy_rft.entropy import TokenStatistics
from entropy_rft.entropy.rules.whole_batch import per_token
from entropy_rft.training.batch import MicroBatch

# Keys of a micro-batch: TRL shuffles and splits the statistics together with the rest.
STATISTICS = ("entropy_rft_log_prob", "entropy_rft_entropy", "entropy_rft_expected_discriminant")
DROPPED = "entropy_rft_dropped"
"""Tokens ``(B, T)`` that leave the gradient without a change of their advantage."""
PENALTY = "entropy_rft_penalty"
"""What the rule adds to the loss, a :class:`~entropy_rft.entropy.Penalty` with weights ``(B, T)``."""
UPDATE = "entropy_rft_update"
"""Which update of its generation a micro-batch is prepared for, from 1."""


def with_statistics(inputs: Mapping[str, Any], statistics: TokenStatistics) -> dict[str, Any]:
    """The micro-batch with `statistics`, ``(B, T)``, in it."""
    tensors = (statistics.log_prob, statistics.entropy, statistics.expected_discriminant)
    return dict(inputs) | dict(zip(STATISTICS, tensors, strict=True))


def loss_mask(inputs: Mapping[str, Any]) -> Tensor:
    """The tokens ``(B, T)`` that TRL's loss counts, nonzero = valid."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def micro_batch(inputs: Mapping[str, Any]) -> MicroBatch:
    """What the rules need of a micro-batch that has statistics."""
    statistics = TokenStatistics(*(inputs[name] for name in STATISTICS))
    advantages, mask = inputs["advantages"], loss_mask(inputs)
    if DROPPED in inputs:
        advantages = torch.where(inputs[DROPPED], 0.0, per_token(advantages, mask))
    return MicroBatch(statistics, advantages, mask)
