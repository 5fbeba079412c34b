"""First-order entropy dynamics: what a policy-gradient step does to the entropy of each position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from entropy_rft.entropy.precision import wide
from entropy_rft.entropy.rules.whole_batch import Advantages, per_token
from entropy_rft.entropy.statistics import TokenStatistics

SIGNS = ("positive", "negative", "zero")  # of an advantage


def predicted_entropy_change(
    statistics: TokenStatistics,
    advantages: Advantages,
    mask: Shaped[Tensor, "batch time"],
    step_size: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """The entropy change of each position to first order, ``ΔH = -α (S* - E_{v~π}[S_v])`` (arXiv 2602.03392).

    One GRPO step on token ``a`` moves the position's logits by ``α (e_a - π)`` with ``α = step_size · advantage``
    (the importance ratio is 1 at the policy that the step starts from).

    Args:
        statistics: of the policy that the step starts from, shape ``(B, T)``. (In the trainer: of the
            policy that sampled, also for later updates from the same generation, unless `entropy_clip_refresh` is set.)
        advantages: ``(B,)`` or ``(B, T)``.
        mask: ``(B, T)``, nonzero = valid.
        step_size: η, the logit step per unit of advantage.

    Returns:
        ``(B, T)``, nats per position and step; 0 outside `mask`.
    """
    change = -step_size * per_token(advantages, mask) * statistics.centred_discriminant
    return change.masked_fill(mask == 0, 0.0)


def split_entropy_change(
    change: Float[Tensor, "batch time"],
    advantages: Advantages,
    mask: Shaped[Tensor, "batch time"],
    phases: Mapping[str, Shaped[Tensor, "batch time"]],
) -> dict[str, dict[str, float]]:
    """Sums of `change` by the sign of the advantage and by phase; together they are the sum over all valid tokens.

    Args:
        change: ``(B, T)``, nats; predicted or measured.
        advantages: ``(B,)`` or ``(B, T)``.
        mask: ``(B, T)``, nonzero = valid.
        phases: disjoint masks ``(B, T)`` by name, such as those of :func:`~entropy_rft.entropy.phase_masks`. Valid
            tokens in none of them (the marker's own) are summed under ``"other"``.

    Returns:
        ``{sign: {phase: nats}}`` with the signs of `SIGNS`.

    Raises:
        ValueError: the phases overlap, or one is called "other".
    """
    valid = mask != 0
    inside = {name: (phase != 0) & valid for name, phase in phases.items()}
    if "other" in inside:
        raise ValueError("phases has a mask called 'other', which is the name for tokens in no phase: rename it")
    count = torch.stack([phase.int() for phase in inside.values()]).sum(0) if inside else torch.zeros_like(valid).int()
    if int(count.max()) > 1:
        raise ValueError(f"phases {', '.join(inside)} overlap: a token may be in one of them only")
    inside["other"] = valid & (count == 0)
    sign = per_token(advantages, mask).sign()
    wider = change.to(wide(change))
    return {
        name: {phase: float(wider[within & (sign == value)].sum()) for phase, within in inside.items()}
        for name, value in zip(SIGNS, (1, -1, 0), strict=True)
    }


@dataclass(frozen=True)
class ChangeFit:
    """The fit of measured entropy changes to predicted ones, over tokens.

    Attributes:
        tokens: how many were compared.
        predicted: mean predicted change, nats per token.
        measured: mean measured change, nats per token.
        slope: of the line through the origin, ``Σ predicted · measured / Σ predicted²``; NaN without a prediction.
        correlation: Pearson's, over tokens; NaN when either does not vary.
    """

    tokens: int
    predicted: float
    measured: float
    slope: float
    correlation: float


def change_sums(
    predicted: Float[Tensor, "batch time"],
    measured: Float[Tensor, "batch time"],
    mask: Shaped[Tensor, "batch time"],
) -> Float[Tensor, " 6"]:
    """What :func:`fit_changes` needs of a part of the tokens: ``(6,)``, to be added up over parts and processes."""
    valid = mask != 0
    p, m = (x[valid].to(wide(x)) for x in (predicted, measured))
    return torch.stack([torch.ones_like(p).sum(), p.sum(), m.sum(), (p * p).sum(), (m * m).sum(), (p * m).sum()])


def fit_changes(sums: Float[Tensor, " 6"]) -> ChangeFit:
    """The fit over all tokens whose :func:`change_sums` were added up."""
    n, p, m, pp, mm, pm = sums.tolist()
    if n == 0:
        return ChangeFit(0, *[float("nan")] * 4)
    spread = max(pp - p * p / n, 0.0) * max(mm - m * m / n, 0.0)
    correlation = (pm - p * m / n) / spread**0.5 if spread > 0 else float("nan")
    return ChangeFit(int(n), p / n, m / n, pm / pp if pp > 0 else float("nan"), correlation)
