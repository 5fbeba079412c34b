"""KL-Cov: a penalty on the tokens whose log-probability and advantage vary together most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from entropy_rft.entropy.rules.covariance import covariances
from entropy_rft.entropy.rules.rule import Decision, Penalty, Rule, option
from entropy_rft.entropy.rules.whole_batch import Advantages, WholeBatch
from entropy_rft.entropy.statistics import TokenStatistics


@dataclass(frozen=True)
class KLCov(Rule):
    """KL-Cov: drops no token; the tokens with the largest covariance are held near the policy that sampled them.

    ``Cov_t = (log π_t - mean log π)(A_t - mean A)``, with the means over every valid token of the batch. The share
    `share` of the valid tokens, at least one, that has the largest ``Cov_t`` gets ``beta |log π - log π_old|`` added to
    its loss. Only tokens with ``Cov_t > 0`` are chosen. (In a batch whose advantages are all equal every ``Cov_t`` is
    0. A choice among equal values would depend on the order of the tokens.)

    With a single update for each generation ``log π = log π_old``: the penalty and its gradient are 0, and the rule
    does nothing. It needs `num_iterations` above 1, or more steps per generation than accumulation steps.

    Source: arXiv 2505.22617; the preset is that of the published code, and the paper's `share` is 2e-4 to 2e-3.
    Published code takes the means and the share over a micro-batch of one process, of the policy that is trained, and
    does not clip the ratio. Here they are those of the whole batch, of the policy that sampled (as for every rule), and
    the ratio is TRL's.

    Metrics: ``covariance`` (the mean of ``Cov_t``, nats).

    Raises:
        ValueError, TypeError: naming the field and its value.
    """

    name: ClassVar[str] = "kl_cov"
    later_updates_only: ClassVar[bool] = True

    share: float = option(
        "This share of a batch's tokens, those with the largest covariance, gets the penalty, always at least one; 0 "
        "is none.",
        default=2e-4,
        at_least=0,
        at_most=1,
    )
    beta: float = option("The weight of the penalty |log π - log π_old|; 0 is no penalty.", default=1.0, at_least=0)

    @property
    def idle(self) -> bool:
        return self.share == 0 or self.beta == 0

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
        chosen = torch.zeros_like(covariance, dtype=torch.bool)
        if not self.idle:
            chosen = batch.most_extreme(covariance, covariance > 0, batch.allowed(self.share))
        weight = batch.spread(chosen.to(torch.float32) * self.beta)
        return Decision(
            batch.kept(torch.zeros_like(chosen)), {"covariance": batch.mean(covariance)}, Penalty(weight, _distance)
        )


def _distance(log_prob: Float[Tensor, " tokens"], old_log_prob: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    return (log_prob - old_log_prob).abs()
