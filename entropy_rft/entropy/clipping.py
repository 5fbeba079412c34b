"""Entropy-discriminator clipping: which tokens of a batch leave the policy gradient.

Source: arXiv 2602.03392. The mean and the width are those of every valid completion token of the whole batch of an
optimisation step. When several processes hold parts of it, pass their process group; each must call, even one without
a valid token.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from entropy_rft.entropy.statistics import TokenStatistics

RULES = ("clip_b", "clip_v")
ADVANTAGES = ("negative", "positive", "all")

# Below this width the batch has no spread to measure a token against, and everything is kept.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class ClipDecision:
    """What a rule decided for one batch.

    Attributes:
        keep: bool, the shape of the mask. False only where a valid token is dropped.
        sigma: 0-dim float64 (float32 on MPS), the width of the whole batch, nats.
    """

    keep: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class EntropyClip:
    """Keep a token when ``-μ_low σ ≤ z ≤ μ_high σ``.

    ===========  =======================  ================================================
    rule         z                        σ
    ===========  =======================  ================================================
    ``clip_b``   ``S* - mean_batch(S*)``  population std of ``S*`` over the batch
    ``clip_v``   ``S* - E_π[S]``          population std of that z over the batch
    ===========  =======================  ================================================

    A batch whose σ is below 1e-12 is kept whole.

    Args:
        rule: ``"clip_b"`` (batch-normalised) or ``"clip_v"`` (vocabulary-normalised).
        mu_low, mu_high: widths in units of σ, above 0; ``None`` leaves that side open.
        advantages: the tokens the rule may drop, by the sign of their advantage: ``"negative"``, ``"positive"`` or
            ``"all"`` (zero included).
        max_fraction: at most this share of the batch's valid tokens is dropped, but always allowed one; when more
            qualify, those with the largest ``|z|`` are. ``None`` sets no limit.

    Raises:
        ValueError, TypeError: naming the argument and its value.
    """

    rule: Literal["clip_b", "clip_v"]
    mu_low: float | None
    mu_high: float | None
    advantages: Literal["negative", "positive", "all"]
    max_fraction: float | None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if self.advantages not in ADVANTAGES:
            raise ValueError(f"advantages must be one of {', '.join(ADVANTAGES)}, got {self.advantages!r}")
        for name in ("mu_low", "mu_high", "max_fraction"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number or None, got {value!r}")
            if not float(value) > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.max_fraction is not None and self.max_fraction > 1:
            raise ValueError(f"max_fraction must be at most 1, got {self.max_fraction}")

    @classmethod
    def clip_b(cls, mu: float = 2.5) -> EntropyClip:
        """Clip_B as in the authors' released code: one-sided, tokens with a negative advantage only."""
        return cls("clip_b", mu_low=mu, mu_high=None, advantages="negative", max_fraction=None)

    @classmethod
    def clip_v(cls, mu: float = 8.5, max_fraction: float | None = 1e-4) -> EntropyClip:
        """Clip_V as in the authors' released code: as :meth:`clip_b`, and at most `max_fraction` is dropped."""
        return cls("clip_v", mu_low=mu, mu_high=None, advantages="negative", max_fraction=max_fraction)

    @classmethod
    def two_sided(cls, rule: Literal["clip_b", "clip_v"], mu: float) -> EntropyClip:
        """The paper's formula: ``-μσ ≤ z ≤ μσ``, whatever the sign of the advantage, no limit."""
        return cls(rule, mu_low=mu, mu_high=mu, advantages="all", max_fraction=None)

    def keep_mask(
        self,
        statistics: TokenStatistics,
        advantages: Tensor,
        mask: Tensor,
        group: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """``decide(...).keep``: bool ``(B, T)``, False only where a valid token is dropped."""
        return self.decide(statistics, advantages, mask, group).keep

    @torch.no_grad()
    def decide(
        self,
        statistics: TokenStatistics,
        advantages: Tensor,
        mask: Tensor,
        group: dist.ProcessGroup | None = None,
    ) -> ClipDecision:
        """Apply the rule to a whole batch.

        Args:
            statistics: of the policy that the step starts from, ``(B, T)``. (In the trainer: of the policy that
                sampled, also for later updates from the same generation, unless `entropy_clip_refresh` is set.)
            advantages: ``(B,)`` or ``(B, T)``.
            mask: ``(B, T)``, nonzero = valid.
            group: the processes that hold the other parts of the batch; ``None`` when this one holds all of it.
        """
        if statistics.entropy.shape != mask.shape:
            shape = tuple(statistics.entropy.shape)
            raise ValueError(f"statistics of shape {shape} need a mask of that shape, got {tuple(mask.shape)}")
        valid = mask != 0
        sign = per_token(advantages, mask)[valid]
        # MPS has no float64.
        wide = torch.float32 if mask.device.type == "mps" else torch.float64
        z, sigma, count = self._deviations(statistics.map(lambda x: x[valid].to(wide)), group)
        drop = torch.zeros_like(z, dtype=torch.bool)
        # Written as a violation, so that a NaN (a broken row) keeps its token instead of dropping the batch.
        if self.mu_low is not None:
            drop |= z < -self.mu_low * sigma
        if self.mu_high is not None:
            drop |= z > self.mu_high * sigma
        drop &= sigma >= _NO_SPREAD
        if self.advantages == "negative":
            drop &= sign < 0
        elif self.advantages == "positive":
            drop &= sign > 0
        if self.max_fraction is not None:
            drop = _most_extreme(z.abs(), drop, max(1, int(self.max_fraction * count + 1e-9)), group)
        keep = torch.ones_like(valid)
        keep[valid] = ~drop
        return ClipDecision(keep, sigma)

    def _deviations(self, statistics: TokenStatistics, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, int]:
        """z of each local token, σ and the number of tokens of the whole batch; two passes, so that nothing cancels."""
        value = statistics.discriminant if self.rule == "clip_b" else statistics.centred_discriminant
        total, count = _sum_over(group, torch.stack([value.sum(), value.new_tensor(value.numel())]))
        mean = total / count.clamp(min=1)
        (squares,) = _sum_over(group, (value - mean).square().sum().unsqueeze(0))
        sigma = (squares / count.clamp(min=1)).sqrt()
        return (value - mean if self.rule == "clip_b" else value), sigma, int(count)


def per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """`advantages` ``(B,)`` or ``(B, T)`` as ``(B, T)``."""
    if advantages.dim() == 1 and advantages.shape[0] == mask.shape[0]:
        advantages = advantages.unsqueeze(1).expand(mask.shape)
    if advantages.shape != mask.shape:
        raise ValueError(
            f"advantages must be (B,) or (B, T) for a mask of shape {tuple(mask.shape)}, got {tuple(advantages.shape)}"
        )
    return advantages


def _sum_over(group: dist.ProcessGroup | None, values: Tensor) -> Tensor:
    if group is not None:
        dist.all_reduce(values, group=group)
    return values


def _most_extreme(size: Tensor, candidates: Tensor, limit: int, group: dist.ProcessGroup | None) -> Tensor:
    """The `limit` candidates with the largest `size` in the whole batch, exactly, ties going to the earlier token.

    Each process offers its own largest `limit`; only these travel.
    """
    indices = candidates.nonzero().squeeze(1)
    order = size[indices].argsort(descending=True, stable=True)
    indices = indices[order][:limit]
    taken = min(limit, indices.numel())
    if group is not None:
        taken = _share_of_this_process(size[indices], limit, group)
    chosen = torch.zeros_like(candidates)
    chosen[indices[:taken]] = True
    return chosen


def _share_of_this_process(offered: Tensor, limit: int, group: dist.ProcessGroup) -> int:
    """How many of the batch's `limit` largest values are among those this process offers, largest first."""
    lengths = [torch.zeros(1, dtype=torch.long, device=offered.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(lengths, torch.tensor([offered.numel()], device=offered.device), group=group)
    longest = int(max(int(length) for length in lengths))
    if longest == 0:
        return 0
    padded = offered.new_full((longest,), -1.0)  # sizes are never negative
    padded[: offered.numel()] = offered
    rows = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(rows, padded, group=group)
    everyone = torch.cat(rows)
    winners = everyone.argsort(descending=True, stable=True)[:limit]
    winners = winners[everyone[winners] >= 0]
    return int((winners // longest == dist.get_rank(group)).sum())
