"""Clip-Cov: a random share of the tokens whose log-probability and advantage vary together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from entropy_rft.entropy.rules.covariance import covariances
from entropy_rft.entropy.rules.rule import Decision, Rule, option
from entropy_rft.entropy.rules.whole_batch import Advantages, WholeBatch
from entropy_rft.entropy.statistics import TokenStatistics


@dataclass(frozen=True)
class ClipCov(Rule):
    """Clip-Cov: drops a random share of the tokens whose log-probability and advantage have a high covariance.

    ``Cov_t = (log π_t - mean log π)(A_t - mean A)``, with the means over every valid token of the batch. From the
    tokens with ``cov_low < Cov_t < cov_high`` a share `max_fraction` of all valid tokens, at least one, is drawn at
    random; these leave the policy gradient. The batch's entropy falls with the mean of ``Cov_t``.

    Source: arXiv 2505.22617; the preset is the published setting. Published code takes the means and the share over a
    micro-batch of one process; here they are those of the whole batch. It draws from the tokens that the ratio does not
    clip. Here the ratio is not used; it is 1 in the first update of a generation.

    Metrics: ``covariance`` (the mean of ``Cov_t``, nats), ``candidates`` (share of tokens between the bounds).

    Raises:
        ValueError, TypeError: naming the field and its value.
    """

    name: ClassVar[str] = "clip_cov"

    cov_low: float = option("Tokens with a covariance above this, in nats, may be dropped.", default=1.0, at_least=0)
    cov_high: float = option("Tokens with a covariance below this, in nats, may be dropped.", default=5.0, above=0)
    max_fraction: float = option(
        "At most this share of a batch's tokens is dropped, always at least one; 1 is no limit.",
        default=2e-4,
        above=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cov_low < self.cov_high:
            raise ValueError(f"cov_low must be below cov_high ({self.cov_high}), got {self.cov_low}")

    @torch.no_grad()
    def decide(
        self,
        statistics: TokenStatistics,
        advantages: Advantages,
        mask: Shaped[Tensor, "batch time"],
        group: dist.ProcessGroup | None = None,
    ) -> Decision:
        batch = WholeBatch(statistics, advantages, mask, group)
        covariance = covariances(batch)
        candidates = (covariance > self.cov_low) & (covariance < self.cov_high)
        dropped = batch.at_random(covariance, candidates, batch.allowed(self.max_fraction))
        metrics = {"covariance": batch.mean(covariance), "candidates": batch.mean(candidates.to(covariance.dtype))}
        return Decision(batch.kept(dropped), metrics)
