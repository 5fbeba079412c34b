"""Clip_B: the discriminant, centred by the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from entropy_rft.entropy.rules.band import Band
from entropy_rft.entropy.rules.rule import Decision, option
from entropy_rft.entropy.rules.whole_batch import Advantages, WholeBatch
from entropy_rft.entropy.statistics import TokenStatistics


@dataclass(frozen=True)
class ClipB(Band):
    """Clip_B: drops tokens whose discriminant is far from the batch's mean.

    ``z = S* - mean_batch(S*)``, with ``S* = π(a) (H + log π(a))``; σ is the population standard deviation of ``S*``
    over every valid token of the batch. A token is kept when ``-μ_low σ ≤ z ≤ μ_high σ``.

    Source: arXiv 2602.03392. The preset is that of the authors' released code: one-sided, tokens with a negative
    advantage only, μ = 2.5. The paper's formula is two-sided: ``ClipB(mu_low=μ, mu_high=μ, advantages="all")``.
    """

    name: ClassVar[str] = "clip_b"

    mu_low: float | None = option(
        "Tokens below -mu_low sigma are dropped; inf leaves the side open.", default=2.5, above=0, optional=True
    )

    @torch.no_grad()
    def decide(
        self,
        statistics: TokenStatistics,
        advantages: Advantages,
        mask: Shaped[Tensor, "batch time"],
        group: dist.ProcessGroup | None = None,
    ) -> Decision:
        batch = WholeBatch(statistics, advantages, mask, group)
        value = batch.statistics.discriminant
        mean, sigma = batch.moments(value)
        return self._decision(batch, value - mean, sigma)
