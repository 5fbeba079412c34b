"""Target: hold the batch's entropy at a set point, by feedback."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from entropy_rft.entropy.rules.rule import Decision, Rule, option
from entropy_rft.entropy.rules.whole_batch import Advantages, WholeBatch
from entropy_rft.entropy.statistics import TokenStatistics


@dataclass(frozen=True)
class Target(Rule):
    """Target: drops the fewest tokens with a negative advantage that hold the batch's mean entropy at a set point.

    Of the tokens with a negative advantage those with the lowest discriminant ``S* = π(a) (H + log π(a))`` lower the
    entropy most, to first order ``ΔH = -α (S* - E_π[S])`` (arXiv 2602.03392). The rule drops a share of the batch: the
    tokens with the lowest ``S*``. A :class:`Controller` sets the share: it compares the batch's mean entropy, and the
    entropy that its trend predicts, with the target. The rule does not act against entropy that is above the
    target, which falls by itself, and waits for it. Only entropy that runs away, in the mean of ten batches 1.3 times
    above the target and above the lowest such mean so far, is lowered: then the tokens with the highest ``S*`` are
    dropped.

    :meth:`decide` is one step of the controller. The state is small (:meth:`state_dict`); the trainer keeps it in the
    checkpoint. It depends on statistics of the whole batch only, so it is the same on every process and layout.

    Metrics: ``target`` and ``entropy`` (nats, of the whole batch); ``share`` (what the controller asks for, below 0
    against rising entropy); ``at_bound`` (1 where `max_fraction` limits the share); ``short_of_tokens`` (1 where the
    batch has fewer tokens with a negative advantage).

    Raises:
        ValueError, TypeError: naming the field and its value.
    """

    name: ClassVar[str] = "target"

    target: float | str = option(
        "The entropy to hold: nats per token, or a multiple of the first batch's entropy, such as 0.5x.",
        default="0.5x",
        text=True,
    )
    max_fraction: float = option(
        "At most this share of a batch's tokens is dropped, always at least one; 1 is no limit.",
        default=0.05,
        above=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        level, relative = _level(self.target)
        controller = Controller(max_share=float(self.max_fraction), target=None if relative else level)
        object.__setattr__(self, "_controller", controller)  # its state changes, the rule does not

    @torch.no_grad()
    def decide(
        self,
        statistics: TokenStatistics,
        advantages: Advantages,
        mask: Shaped[Tensor, "batch time"],
        group: dist.ProcessGroup | None = None,
    ) -> Decision:
        batch = WholeBatch(statistics, advantages, mask, group)
        controller: Controller = self._controller  # type: ignore[attr-defined]
        entropy = batch.mean(batch.statistics.entropy)
        share = controller.share
        if int(batch.count) and bool(entropy.isfinite()):
            if controller.target is None:
                controller.target = self.set_point(float(entropy))
            if controller.first is None:
                controller.first = float(entropy)
            share = controller.step(float(entropy))
        wanted = round(abs(share) * int(batch.count))
        size = batch.statistics.discriminant
        candidates = (batch.advantages < 0) & size.isfinite()
        dropped = torch.zeros_like(candidates)
        if wanted:
            dropped = batch.most_extreme(size if share < 0 else -size, candidates, wanted)
        available = batch.mean(candidates.to(entropy.dtype)) * batch.count
        metrics = {
            "entropy": entropy,
            "target": entropy.new_tensor(controller.target or 0.0),
            "share": entropy.new_tensor(share),
            "at_bound": entropy.new_tensor(float(abs(share) >= controller.max_share)),
            "short_of_tokens": (available < wanted).to(entropy.dtype),
        }
        return Decision(batch.kept(dropped), metrics)

    def set_point(self, first: float) -> float:
        """The entropy to hold, nats.

        Args:
            first: the first batch's entropy, nats, of which a target such as 0.5x is a multiple.
        """
        level, relative = _level(self.target)
        return level * first if relative else level

    def state_dict(self) -> dict[str, Any]:
        return {**self._controller.state_dict(), "asked": self.target}  # type: ignore[attr-defined]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; another `target` than that of the state is the set point from now on."""
        controller: Controller = self._controller  # type: ignore[attr-defined]
        controller.load_state_dict({name: value for name, value in state.items() if name != "asked"})
        if state.get("asked", self.target) != self.target:
            controller.target = None if controller.first is None else self.set_point(controller.first)


# Constants of the controller, in units that do not depend on a model. It settles in about 1 / _SPEED updates. The share
# that holds the entropy is assumed to be about _HOLDING until the run shows another one.
_SPEED = 0.1
_HOLDING = 0.01
_LEVEL_MEMORY = 0.65  # weight of the newest batch in the smoothed entropy
_TREND_MEMORY = 0.3  # weight of the newest change in its trend
_LOOK_AHEAD = 4  # updates: Adam's first moment makes the effect of a share some ten updates late
_FAR = 0.2  # of the target: so far below it the proportional gain is twice as high
_SLOWEST_FALL = 1e-3  # of the target, per update: the assumed fall of a run that does not fall
_FORGETTING = 0.98  # factor on the fastest fall seen, per update
# Entropy this many times above the target, and above the lowest that was seen, runs away and is lowered. What lowers it
# (leaving confident mistakes unpunished) costs accuracy at once, so entropy that only falls slowly is left alone.
_RUNAWAY = 1.3
_MEAN_MEMORY = 0.1  # weight of the newest batch in the mean that tells a runaway from the noise of small batches
_FIRST_MEAN = 5  # batches of the first mean that counts


@dataclass
class Controller:
    """A proportional-integral controller of the share of dropped tokens, with gains that adapt to the speed of the run.

    With ``h`` the smoothed entropy (Holt's linear smoothing, of trend ``b``), the relative error of ``n`` updates ahead
    is ``e = (target - h - n b) / target``. The share is ``k_p e + I`` with ``I ← I + k_i e``, between 0 and `max_share`
    (and between ``-max_share`` and 0 against entropy that runs away). Without the rule, let the entropy fall by ``c``
    of the target an update, and let a share ``u`` stop the fall: ``h' = -c + (c / u) share``. A closed loop of the
    frequency ``ω`` with critical damping then needs ``k_p = 2 ω u / c`` and ``k_i = ω² u / c``. ``c`` is the fastest
    fall seen, with a decay. So if a learning rate, a model or a precision makes the entropy move ten times slower, the
    gains are ten times higher. Too much is worse than too little: entropy above the target is only waited for, and a
    run's own fall slows down after its fastest phase. So ``u`` is assumed low, and ``k_p`` grows with the distance
    below the target instead. The integral does not change while the share is at a bound and the error pushes it further
    against that bound.

    Attributes:
        max_share: bound of the share.
        target: nats; ``None`` until it is known.
        first: the first batch's entropy, nats; ``None`` before it.
        level, trend: smoothed entropy and its change an update, nats; ``None`` before the first batch.
        mean: of the latest ten or so batches, nats.
        batches: that were seen.
        lowest: the lowest such mean so far, nats.
        integral: I.
        fall: c.
        share: of the last step.
    """

    max_share: float
    target: float | None = None
    first: float | None = None
    level: float | None = None
    trend: float = 0.0
    mean: float = 0.0
    batches: int = 0
    lowest: float = math.inf
    integral: float = 0.0
    fall: float = 0.0
    share: float = 0.0

    def step(self, entropy: float) -> float:
        """The share of tokens to drop now; below 0 against rising entropy.

        Args:
            entropy: mean of the batch, nats. One that is not finite changes nothing.
        """
        if self.target is None:
            raise ValueError("the controller has no target yet")
        if not math.isfinite(entropy) or self.target <= 0:
            return self.share
        self._observe(entropy, self.target)
        assert self.level is not None
        error = (self.target - self.level - _LOOK_AHEAD * self.trend) / self.target
        per_share = max(self.fall, _SLOWEST_FALL) / _HOLDING
        proportional, integral = 2 * _SPEED / per_share, _SPEED**2 / per_share
        proportional *= 1 + max(0.0, self.target - self.level) / (_FAR * self.target)
        runs_away = min(self.level, self.mean) > _RUNAWAY * max(self.target, self.lowest)
        low, high = (-self.max_share, 0.0) if runs_away else (0.0, self.max_share)
        wanted = proportional * error + self.integral
        self.share = min(max(wanted, low), high)
        if self.share == wanted or (error > 0) != (wanted > self.share):
            self.integral = min(max(self.integral + integral * error, low), high)
        else:
            self.integral = min(max(self.integral, low), high)
        return self.share

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`; `max_share` stays this controller's own."""
        for name, value in state.items():
            if name != "max_share":
                setattr(self, name, value)

    def _observe(self, entropy: float, target: float) -> None:
        self.batches += 1
        self.mean += max(_MEAN_MEMORY, 1 / self.batches) * (entropy - self.mean)
        if self.batches >= _FIRST_MEAN:
            self.lowest = min(self.lowest, self.mean)
        if self.level is None:
            self.level = entropy
            return
        before = self.level
        self.level = _LEVEL_MEMORY * entropy + (1 - _LEVEL_MEMORY) * (before + self.trend)
        self.trend += _TREND_MEMORY * (self.level - before - self.trend)
        self.fall = max(_FORGETTING * self.fall, -self.trend / target)


def _level(target: Any) -> tuple[float, bool]:
    """The number of `target`, and whether it is a multiple of the first batch's entropy."""
    text = target.strip() if isinstance(target, str) else target
    relative = isinstance(text, str) and text.endswith("x")
    try:
        if isinstance(text, bool) or not isinstance(text, str | Real):
            raise ValueError
        number = float(text.removesuffix("x") if isinstance(text, str) else text)
    except ValueError:
        raise ValueError(
            f"target must be nats per token (0.25) or a multiple of the first batch's entropy (0.5x), got {target!r}"
        ) from None
    if not 0 < number < math.inf:
        raise ValueError(f"target must be above 0, got {target!r}")
    return number, relative
