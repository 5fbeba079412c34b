"""What Clip_B and Clip_V share: a band around a centred discriminant, outside of which tokens are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from entropy_rft.entropy.rules.rule import Decision, Rule, option
from entropy_rft.entropy.rules.whole_batch import WholeBatch

ADVANTAGES = ("negative", "positive", "all")

# Below this width the batch has no spread to measure a token against, and everything is kept.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Band(Rule):
    """Keep a token when ``-μ_low σ ≤ z ≤ μ_high σ``; z and σ are the subclass's.

    Tokens outside leave the policy gradient where the sign of their advantage is among `advantages`. A batch whose σ is
    below 1e-12 is kept whole.

    Raises:
        ValueError, TypeError: naming the field and its value.
    """

    mu_low: float | None = option(
        "Tokens below -mu_low sigma are dropped; inf leaves the side open.", default=None, above=0, optional=True
    )
    mu_high: float | None = option(
        "Tokens above mu_high sigma are dropped; inf leaves the side open.", default=None, above=0, optional=True
    )
    advantages: Literal["negative", "positive", "all"] = option(
        "Tokens the rule may drop, by the sign of their advantage: 'negative', 'positive' or 'all'.",
        default="negative",
        choices=ADVANTAGES,
    )
    max_fraction: float | None = option(
        "At most this share of a batch's tokens is dropped, always at least one; 1 is no limit.",
        default=None,
        above=0,
        at_most=1,
        optional=True,
    )

    def _decision(self, batch: WholeBatch, z: Float[Tensor, " tokens"], sigma: Float[Tensor, ""]) -> Decision:
        drop = torch.zeros_like(z, dtype=torch.bool)
        # Compares for outside, not for inside: NaN (from an invalid row) then keeps tokens and does not drop the batch.
        if self.mu_low is not None:
            drop |= z < -self.mu_low * sigma
        if self.mu_high is not None:
            drop |= z > self.mu_high * sigma
        drop &= sigma >= _NO_SPREAD
        if self.advantages == "negative":
            drop &= batch.advantages < 0
        elif self.advantages == "positive":
            drop &= batch.advantages > 0
        if self.max_fraction is not None:
            drop = batch.most_extreme(z.abs(), drop, batch.allowed(self.max_fraction))
        return Decision(batch.kept(drop), {"sigma": sigma})
