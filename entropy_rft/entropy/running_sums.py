"""The values per token of the pass over a vocabulary; :mod:`entropy_rft.entropy.fused` has the equations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from entropy_rft.entropy.statistics import TokenStatistics

# Used instead of -inf where an infinite value would make 0 * inf: exp(-1e4) is 0 in float32 and 0 * -1e4 is 0.
FAR_BELOW = -1.0e4
NO_MAXIMUM = -1.0e30


class Head(NamedTuple):
    """An LM head: ``z = softcap(scale · (hidden @ weight.T + bias)) / temperature``."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    temperature: float
    softcap: float | None
    scale: float
    product_dtype: torch.dtype | None  # None: float32 from any input


class RunningSums(NamedTuple):
    """For each token, float32 ``(N,)``: the running maximum, the sums over all other tokens, the sampled logit."""

    maximum: Tensor
    s1: Tensor
    t1: Tensor
    s2: Tensor
    t2: Tensor
    target_logit: Tensor

    @classmethod
    def start(cls, tokens: int, device: torch.device) -> RunningSums:
        rows = torch.zeros(6, tokens, dtype=torch.float32, device=device)
        rows[0] = NO_MAXIMUM
        rows[5] = float("-inf")
        return cls(*rows)

    def statistics(self) -> TokenStatistics:
        log_sum, total = self.s1.log1p(), self.s1 + 1
        mean = self.t1 / total
        return TokenStatistics(
            (self.target_logit - self.maximum - log_sum).clamp(min=torch.finfo(torch.float32).min, max=0.0),
            (log_sum - mean).clamp(min=0.0),
            (self.t2 - (self.s2 + 1) * mean) / total.square(),
        )
