"""First-order entropy dynamics: what a policy-gradient step does to the entropy of each position."""

from __future__ import annotations

from torch import Tensor

from entropy_rft.entropy.clipping import per_token
from entropy_rft.entropy.statistics import TokenStatistics


def predicted_entropy_change(
    statistics: TokenStatistics, advantages: Tensor, mask: Tensor, step_size: float = 1.0
) -> Tensor:
    """The entropy change of each position to first order, ``ΔH = -α (S* - E_{v~π}[S_v])`` (arXiv 2602.03392).

    One GRPO step on token ``a`` moves the position's logits by ``α (e_a - π)`` with ``α = step_size · advantage``
    (the importance ratio is 1 at the policy that the step starts from).

    Args:
        statistics: of the policy that the step starts from, shape ``(B, T)``.
        advantages: ``(B,)`` or ``(B, T)``.
        mask: ``(B, T)``, nonzero = valid.
        step_size: η, the logit step per unit of advantage.

    Returns:
        ``(B, T)``, nats per position and step; 0 outside `mask`.
    """
    change = -step_size * per_token(advantages, mask) * statistics.centred_discriminant
    return change.masked_fill(mask == 0, 0.0)
