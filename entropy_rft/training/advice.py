"""The parts of a finding's sentence: fields of the run's configuration, their values, and better ones."""

from __future__ import annotations

import math
from typing import Any

from entropy_rft.errors import UserMistake


class Facts:
    """The fields of a run's configuration, which is TRL's or this package's.

    Args:
        args: the trainer's configuration.
    """

    def __init__(self, args: Any) -> None:
        self._args = args
        self.knows_rules = hasattr(args, "build_entropy_clip")
        self.rule: Any = None
        if self.knows_rules:
            try:
                self.rule = args.build_entropy_clip()
            except UserMistake:  # the trainer reports it
                self.knows_rules = False

    def value(self, field: str) -> Any:
        """The value of a field; None where the configuration has no such field."""
        return getattr(self._args, field, None)

    @property
    def rule_name(self) -> str:
        """The value of `entropy_clip`."""
        return str(getattr(self.rule, "name", "none"))

    @property
    def bound(self) -> float | None:
        """The largest share of tokens that the rule may drop; None where there is none, or the rule has no band."""
        share = getattr(self.rule, "max_fraction", None)
        return share if share is not None and share < 1 and _side(self.rule) else None

    def halved(self, field: str, how: str) -> str:
        """``"lower learning_rate from 2e-06 to 1e-06"``."""
        return self._changed(field, how, 0.5)

    def doubled(self, field: str, how: str) -> str:
        """``"raise num_generations from 8 to 16"``."""
        return self._changed(field, how, 2)

    def _changed(self, field: str, how: str, factor: float) -> str:
        value = self.value(field)
        if not isinstance(value, int | float) or not value > 0:
            return f"{how} {field}"
        return f"{how} {field} from {value:g} to {value * factor:g}"


def _side(rule: Any) -> str | None:
    """The width of a rule that drops what lies outside a band: `mu_low`, or `mu_high` where only that one is set."""
    for name in ("mu_low", "mu_high"):
        width = getattr(rule, name, None)
        if width is not None and math.isfinite(width):
            return name
    return None


def _width(facts: Facts, how: str, factor: float) -> str | None:
    side = _side(facts.rule)
    if side is None:
        return None
    width = getattr(facts.rule, side)
    return f"{how} entropy_clip_{side} from {width:g} to {width * factor:.2g}"


def _target(facts: Facts, how: str, factor: float) -> str:
    text = str(facts.rule.target)  # 0.25, or 0.5x
    number = float(text.rstrip("x"))
    return f"{how} entropy_clip_target from {text} to {number * factor:.2g}{'x' * text.endswith('x')}"


def _share(facts: Facts, how: str, factor: float) -> str:
    share = facts.rule.share
    return f"{how} entropy_clip_share from {share:g} to {min(1.0, share * factor):g}"


def loosen_rule(facts: Facts) -> str | None:
    """Advice that makes a rule drop tokens; None for a rule for which dropping none is correct."""
    if (covariance := getattr(facts.rule, "cov_low", 0)) > 0:
        return f"lower entropy_clip_cov_low from {covariance:g} to {covariance / 2:g}"
    return _width(facts, "lower", 0.8)


def raise_bound(facts: Facts) -> str:
    """Advice that lets the rule drop the tokens outside its band."""
    share = getattr(facts.rule, "max_fraction", None) or 0.0
    more = min(1.0, share * (10 if share < 1e-3 else 2))
    if hasattr(facts.rule, "target"):
        nearer = "a value nearer to the entropy that the run has without the rule"
        return f"raise entropy_clip_max_fraction from {share:g} to {more:g}, or set entropy_clip_target to {nearer}"
    return f"raise entropy_clip_max_fraction from {share:g} to {more:g} to keep more entropy"


def keep_entropy(facts: Facts) -> str:
    """Advice for a run that loses too much entropy."""
    slower = facts.halved("learning_rate", "lower")
    if facts.knows_rules and facts.rule is None:
        return f"set entropy_clip to target (it is none), or {slower}"
    if hasattr(facts.rule, "target"):
        return f"{_target(facts, 'raise', 1.5)}, or {slower}"
    if hasattr(facts.rule, "share"):
        return f"{_share(facts, 'raise', 10)}, or {slower}"
    if not facts.knows_rules:
        wide = (facts.value("epsilon_high") or 0) >= 0.28
        return slower if wide else f"{slower}, or set epsilon_high to 0.28"
    return f"{_width(facts, 'lower', 0.8) or slower}{f', or {slower}' if _side(facts.rule) else ''}"


def set_point(facts: Facts, first: float) -> float | None:
    """The entropy that a rule is to hold, nats; None for a rule that holds none.

    Args:
        first: the entropy at the beginning, of which a target such as 0.5x is a multiple.
    """
    return facts.rule.set_point(first) if hasattr(facts.rule, "set_point") else None


def same_distribution(facts: Facts) -> str:
    """Advice that lets sampler and trainer draw from one distribution; what is set already is not named."""
    changes = [
        f"set {name} to {better}"
        for name, better, well in (
            ("vllm_importance_sampling_correction", "true", (True, None)),
            ("top_p", "1", (1, None)),
            ("top_k", "0", (0, -1, None)),
        )
        if facts.value(name) not in well
    ]
    return ", ".join([*changes, "check that both load the same weights, chat template and dtype"])


def lose_entropy(facts: Facts) -> str:
    """Advice for a run that gains too much entropy."""
    slower = facts.halved("learning_rate", "lower")
    if (facts.value("entropy_coef") or 0) > 0:
        return facts.halved("entropy_coef", "lower")
    if (facts.value("temperature") or 1) > 1:
        return f"lower temperature from {facts.value('temperature'):g} to 1, or {slower}"
    if hasattr(facts.rule, "target"):
        return f"{_target(facts, 'lower', 0.7)}, or {slower}"
    if hasattr(facts.rule, "share"):
        return f"{_share(facts, 'lower', 0.1)}, or {slower}"
    if (wider := _width(facts, "raise", 1.5)) is not None:
        return f"{wider}, or {slower}"
    return slower
