"""Clip_B and Clip_V under one name, with the rule's name as an argument."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import torch.distributed as dist
from jaxtyping import Bool, Shaped
from torch import Tensor

from entropy_rft.entropy.rules import RULES, Decision
from entropy_rft.entropy.rules.band import Band
from entropy_rft.entropy.rules.clip_b import ClipB
from entropy_rft.entropy.rules.clip_v import ClipV
from entropy_rft.entropy.rules.whole_batch import Advantages
from entropy_rft.entropy.statistics import TokenStatistics

_NAMES = tuple(name for name, rule in RULES.items() if issubclass(rule, Band))


@dataclass(frozen=True)
class EntropyClip:
    """Entropy-discriminator clipping (arXiv 2602.03392): keep a token when ``-μ_low σ ≤ z ≤ μ_high σ``.

    z and σ are those of :class:`~entropy_rft.entropy.rules.clip_b.ClipB` or
    :class:`~entropy_rft.entropy.rules.clip_v.ClipV`. A batch whose σ is below 1e-12 is kept whole.

    Args:
        rule: ``"clip_b"`` (batch-normalised) or ``"clip_v"`` (vocabulary-normalised).
        mu_low, mu_high: widths in units of σ, above 0; ``None`` leaves that side open.
        advantages: the tokens the rule may drop, by the sign of their advantage: ``"negative"``, ``"positive"`` or
            ``"all"`` (zero included).
        max_fraction: at most this share of the batch's valid tokens is dropped; one is always allowed. When more
            qualify, those with the largest ``|z|`` are dropped. ``None`` sets no limit.

    Raises:
        ValueError, TypeError: naming the argument and its value.
    """

    rule: Literal["clip_b", "clip_v"]
    mu_low: float | None
    mu_high: float | None
    advantages: Literal["negative", "positive", "all"]
    max_fraction: float | None

    def __post_init__(self) -> None:
        if self.rule not in _NAMES:
            raise ValueError(f"rule must be one of {', '.join(_NAMES)}, got {self.rule!r}")
        self._rule  # noqa: B018 - built for its checks

    @classmethod
    def clip_b(cls, mu: float = 2.5) -> EntropyClip:
        """Clip_B as in the authors' released code: one-sided, tokens with a negative advantage only."""
        return cls._of(ClipB(mu_low=mu))

    @classmethod
    def clip_v(cls, mu: float = 8.5, max_fraction: float | None = 1e-4) -> EntropyClip:
        """Clip_V as in the authors' released code: as :meth:`clip_b`, and at most `max_fraction` is dropped."""
        return cls._of(ClipV(mu_low=mu, max_fraction=max_fraction))

    @classmethod
    def two_sided(cls, rule: Literal["clip_b", "clip_v"], mu: float) -> EntropyClip:
        """The paper's formula: ``-μσ ≤ z ≤ μσ``, whatever the sign of the advantage, no limit."""
        return cls(rule, mu_low=mu, mu_high=mu, advantages="all", max_fraction=None)

    def keep_mask(
        self,
        statistics: TokenStatistics,
        advantages: Advantages,
        mask: Shaped[Tensor, "batch time"],
        group: dist.ProcessGroup | None = None,
    ) -> Bool[Tensor, "batch time"]:
        """``decide(...).keep``: bool ``(B, T)``, False only where a valid token is dropped."""
        return self._rule.keep_mask(statistics, advantages, mask, group)

    def decide(
        self,
        statistics: TokenStatistics,
        advantages: Advantages,
        mask: Shaped[Tensor, "batch time"],
        group: dist.ProcessGroup | None = None,
    ) -> Decision:
        """Apply the rule to a whole batch: see :meth:`entropy_rft.entropy.rules.Rule.decide`."""
        return self._rule.decide(statistics, advantages, mask, group)

    @classmethod
    def _of(cls, rule: Band) -> EntropyClip:
        return cls(rule.name, **{each.name: getattr(rule, each.name) for each in fields(rule)})  # type: ignore[arg-type]

    @cached_property
    def _rule(self) -> Band:
        kind = RULES[self.rule]
        assert issubclass(kind, Band)
        return kind(self.mu_low, self.mu_high, self.advantages, self.max_fraction)
