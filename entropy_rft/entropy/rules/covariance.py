"""What Clip-Cov and KL-Cov share: the covariance of each token's log-probability and advantage."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from entropy_rft.entropy.rules.whole_batch import WholeBatch


def covariances(batch: WholeBatch) -> Float[Tensor, " tokens"]:
    """``Cov_t = (log π_t - mean log π)(A_t - mean A)`` of the valid tokens, nats; means over the batch.

    Source: arXiv 2505.22617. The entropy falls with the mean of ``Cov_t``.
    """
    log_prob = batch.statistics.log_prob
    reward = batch.advantages.to(log_prob.dtype)
    return (log_prob - batch.mean(log_prob)) * (reward - batch.mean(reward))
