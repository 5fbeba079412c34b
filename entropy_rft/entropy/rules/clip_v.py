"""Clip_V: the discriminant, centred by its expectation over the vocabulary."""

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
class ClipV(Band):
    """Clip_V: drops tokens whose discriminant is far from its expectation at their position.

    ``z = S* - E_π[S]``, with ``S_v = π_v (H + log π_v)``; σ is the population standard deviation of z over every valid
    token of the batch (z's mean is subtracted for σ only). A token is kept when ``-μ_low σ ≤ z ≤ μ_high σ``.

    Source: arXiv 2602.03392. The preset is that of the authors' released code: one-sided, tokens with a negative
    advantage only, μ = 8.5, and at most a share of 1e-4 of the batch is dropped: the tokens with the largest ``|z|``.
    """

    name: ClassVar[str] = "clip_v"

    mu_low: float | None = option(
        "Tokens below -mu_low sigma are dropped; inf leaves the side open.", default=8.5, above=0, optional=True
    )
    max_fraction: float | None = option(
        "At most this share of a batch's tokens is dropped, always at least one; 1 is no limit.",
        default=1e-4,
        above=0,
        at_most=1,
        optional=True,
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
        z = batch.statistics.centred_discriminant
        _, sigma = batch.moments(z)
        return self._decision(batch, z, sigma)
