"""What the doctor looks for: conditions on a run's metrics, one value for each update, and what to change.

Nothing here depends on a trainer. A condition is a function of lists of numbers; a check names the metrics it reads,
and gives one sentence where its condition holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from statistics import fmean, median, pvariance
from typing import Any

from entropy_rft.errors import UserTypeError, UserValueError
from entropy_rft.suggestions import did_you_mean
from entropy_rft.training.advice import (
    Facts,
    keep_entropy,
    loosen_rule,
    lose_entropy,
    raise_bound,
    same_distribution,
    set_point,
)

Series = Sequence[float]
"""A metric, one value for each update."""

_RISEN = 2.0  # standard errors by which a reward must have risen to count as risen
_MOVED = 4.0  # the same for other metrics; higher, since they are compared after each update
_OBSERVATIONS = 10  # logged values that each of two compared windows has at least
_NEAR = 0.2  # of a rule's set point: an entropy that moved to within this is where the rule is to hold it
_LENGTH = ("completions/thinking_length", "completions/mean_length")  # TRL logs only the second


def _level(default: float, help: str, kind: str) -> Any:
    return field(default=default, metadata={"help": help, "kind": kind})


@dataclass(frozen=True)
class Levels:
    """When the doctor reports: one level for each finding, under the same name. None or false switches it off.

    The defaults of the findings about entropy, rule and thinking were fixed on stored runs, see ``docs/doctor.md``.

    Attributes:
        window: updates over which metrics are averaged. For some findings a quarter of it is used.
        horizon: updates within which an entropy or a length must have moved, and the reward not have risen. Where a
            value is logged for several updates, both are longer for these findings: a window has at least 10 values.
        entropy_collapse: share of the entropy that is lost while the reward does not rise.
        entropy_runaway: factor by which the entropy rises while the reward does not.
        rule_idle: updates in which the rule drops nothing.
        rule_at_bound: updates in which the rule drops as many tokens as it may.
        no_spread: share of groups whose completions all have the same reward.
        truncated: share of completions that were cut off.
        thinking_collapse: share that is left of the thinking length while the reward does not rise.
        thinking_explosion: factor on the thinking length while the reward does not rise.
        sampler_mismatch: mean difference of the log-probabilities of sampler and trainer, nats per token.
        inverted_reward: share of the correct completions that score below a wrong one.
        pear_lengthens: share of the pairs of correct completions of a question of which the shorter has the higher
            reward; a mean over questions.
        gradient_jump: factor on the median of the gradient norm; below `max_grad_norm` nothing is a jump.

    Raises:
        ValueError, TypeError: naming the level and its value.
    """

    window: int = _level(20, "updates over which metrics are averaged", "updates")
    horizon: int = _level(100, "updates within which an entropy or a length is compared", "updates")
    entropy_collapse: float | None = _level(0.6, "share of the entropy lost while the reward does not rise", "share")
    entropy_runaway: float | None = _level(1.1, "factor on the entropy while the reward does not rise", "factor")
    rule_idle: int | None = _level(20, "updates in which the rule drops nothing", "updates")
    rule_at_bound: int | None = _level(10, "updates in which the rule drops as much as it may", "updates")
    no_spread: float | None = _level(0.8, "share of groups whose rewards are all equal", "share")
    truncated: float | None = _level(0.3, "share of completions that were cut off", "share")
    thinking_collapse: float | None = _level(0.7, "share of the thinking left while the reward does not rise", "share")
    thinking_explosion: float | None = _level(1.2, "factor on the thinking while the reward does not rise", "factor")
    sampler_mismatch: float | None = _level(0.1, "difference of sampler and trainer, nats per token", "nats")
    inverted_reward: float | None = _level(0.05, "share of correct completions that score below wrong ones", "share")
    pear_lengthens: float | None = _level(0.4, "share of pairs of which PEAR prefers the shorter", "share")
    gradient_jump: float | None = _level(10.0, "factor on the median gradient norm", "factor")

    def __post_init__(self) -> None:
        for each in fields(self):
            _check_level(each.name, getattr(self, each.name), each.metadata["kind"], each.name in FINDINGS)
        if self.horizon < 2 * self.window:
            raise UserValueError(
                f"doctor.horizon must be at least twice doctor.window ({self.window}), got {self.horizon}"
            )

    def spaced(self, updates: int) -> Levels:
        """These levels for comparisons in a run that logs every so many `updates`."""
        window = max(self.window, _OBSERVATIONS * updates if updates > 1 else 0)
        return replace(self, window=window, horizon=max(self.horizon, 2 * window))

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Levels:
        """The defaults, replaced where a level is given.

        Raises:
            ValueError, TypeError: naming the level, its value, and the nearest known name.
        """
        known = [each.name for each in fields(cls)]
        for name in given:
            if name not in known:
                raise UserValueError(f"doctor: there is no level {name!r}{did_you_mean(name, known)}")
        off = {name: None for name, value in given.items() if value is False and name in FINDINGS}
        return cls(**{**given, **off})


def _check_level(name: str, value: Any, kind: str, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int if kind == "updates" else int | float):
        what = "a whole number of updates" if kind == "updates" else "a number"
        raise UserTypeError(f"doctor.{name} must be {what}{', or false' * optional}, got {value!r}")
    within = {"updates": value >= 1, "share": 0 < value <= 1, "factor": value > 1, "nats": value > 0}[kind]
    if not within or not math.isfinite(value):
        bound = {"updates": "at least 1", "share": "above 0 and at most 1", "factor": "above 1", "nats": "above 0"}
        raise UserValueError(f"doctor.{name} must be {bound[kind]}, got {value!r}")


# --- conditions ---------------------------------------------------------------------------------------------------


def first_and_last(values: Series, window: int, horizon: int | None = None) -> tuple[Series, Series] | None:
    """The last `window` values, and as many at the start of the last `horizon` (of all); None while they overlap."""
    start = 0 if horizon is None else max(0, len(values) - horizon)
    if len(values) - start < 2 * window:
        return None
    return values[start : start + window], values[-window:]


def clear_change(before: Series, now: Series) -> float:
    """The difference of the means in standard errors of it; 0 for no difference, infinite where neither part varies."""
    change = fmean(now) - fmean(before)
    error = math.sqrt(sum(pvariance(part) / _observations(part) for part in (before, now)))
    return change / error if error else math.copysign(math.inf, change) if change else 0.0


def _observations(values: Series) -> int:
    # A value that was logged for several updates is repeated here, and is one observation.
    return 1 + sum(a != b for a, b in pairwise(values))


def moved_in_vain(
    values: Series, reward: Series, window: int, horizon: int, factor: float
) -> tuple[float, float] | None:
    """The means before and now, if they differ clearly, by `factor` (below 1: a fall), and the reward has not risen."""
    parts, rewards = (first_and_last(series, window, horizon) for series in (values, reward))
    if parts is None or rewards is None or clear_change(*rewards) > _RISEN or abs(clear_change(*parts)) < _MOVED:
        return None
    before, now = map(fmean, parts)
    moved = now <= factor * before if factor < 1 else now >= factor * before
    return (before, now) if before > 0 and moved else None


def stays(values: Series, window: int, holds: Callable[[float], bool]) -> bool:
    """Whether `holds` in each of the last `window` updates."""
    return len(values) >= window and all(map(holds, values[-window:]))


def recent_mean(values: Series, window: int) -> float | None:
    """The mean of the last `window` values; None where there are fewer."""
    return fmean(values[-window:]) if len(values) >= window else None


def jump(values: Series, window: int, least: float) -> float | None:
    """The last value divided by the median of the `window` values before it; None if it is at most `least`."""
    if len(values) <= window or values[-1] <= least:
        return None
    usual = median(values[-window - 1 : -1])
    return values[-1] / usual if usual > 0 else None


# --- checks -------------------------------------------------------------------------------------------------------


def _entropy_collapse(level: float, levels: Levels, facts: Facts, entropy: Series, reward: Series) -> str | None:
    # A share of 1 means no entropy at all; a mean does not become exactly 0.
    found = moved_in_vain(entropy, reward, levels.window, levels.horizon, max(1 - level, 1e-6))
    held = set_point(facts, entropy[0])
    if found is None or (held is not None and found[1] >= (1 - _NEAR) * held):
        return None
    return (
        f"the entropy fell from {found[0]:.3g} to {found[1]:.3g} nats within {_within(entropy, levels)} updates and "
        f"the reward did not clearly rise in them: {keep_entropy(facts)}"
    )


def _entropy_runaway(level: float, levels: Levels, facts: Facts, entropy: Series, reward: Series) -> str | None:
    found = moved_in_vain(entropy, reward, levels.window, levels.horizon, level)
    held = set_point(facts, entropy[0])
    if found is None or (held is not None and found[1] <= (1 + _NEAR) * held):
        return None
    return (
        f"the entropy rose from {found[0]:.3g} to {found[1]:.3g} nats within {_within(entropy, levels)} updates and "
        f"the reward did not clearly rise in them: {lose_entropy(facts)}"
    )


def _within(values: Series, levels: Levels) -> int:
    return min(len(values), levels.horizon)


def _rule_idle(level: float, levels: Levels, facts: Facts, dropped: Series) -> str | None:
    advice = loosen_rule(facts)  # None: for this rule dropping nothing is no mistake
    if advice is None or not stays(dropped, int(level), lambda share: share == 0):
        return None
    return f"the rule {facts.rule_name} dropped no token in {int(level)} updates, so this is plain GRPO: {advice}"


def _rule_at_bound(level: float, levels: Levels, facts: Facts, dropped: Series) -> str | None:
    # Tokens are whole, so the dropped share is a little less than the bound, or more where it is the one token that may
    # always be dropped. A rule without a band logs itself (with a 1) whether its bound limits it.
    least = 1.0 if facts.bound is None else 0.9 * facts.bound
    if not stays(dropped, int(level), lambda share: share >= least):
        return None
    return (
        f"the rule {facts.rule_name} dropped as many tokens as it may in each of {int(level)} updates: "
        f"{raise_bound(facts)}"
    )


def _no_spread(level: float, levels: Levels, facts: Facts, share: Series) -> str | None:
    now = recent_mean(share, levels.window)
    if now is None or now < level:
        return None
    return (
        f"in {now:.0%} of the groups of the last {levels.window} updates all completions had the same reward, so "
        f"nothing is learned from them: {facts.doubled('num_generations', 'raise')}, or take questions that are "
        "neither always answered right nor always wrong"
    )


def _truncated(level: float, levels: Levels, facts: Facts, share: Series) -> str | None:
    now = recent_mean(share, levels.window)
    if now is None or now < level:
        return None
    masking = "" if facts.value("mask_truncated_completions") else ", or set mask_truncated_completions to true"
    return (
        f"{now:.0%} of the completions of the last {levels.window} updates were cut off: "
        f"{facts.doubled('max_completion_length', 'raise')}{masking}"
    )


def _thinking_collapse(level: float, levels: Levels, facts: Facts, length: Series, reward: Series) -> str | None:
    found = moved_in_vain(length, reward, levels.window, levels.horizon, level)
    return found and (
        f"{_thinking(found, 'shrank')}: {facts.halved('learning_rate', 'lower')}, and give a reward for short answers "
        "a smaller weight (reward_weights)"
    )


def _thinking_explosion(level: float, levels: Levels, facts: Facts, length: Series, reward: Series) -> str | None:
    found = moved_in_vain(length, reward, levels.window, levels.horizon, level)
    other = ", or set loss_type to dr_grpo, which does not favour long wrong answers"
    return found and (
        f"{_thinking(found, 'grew')}: {facts.halved('learning_rate', 'lower')}"
        f"{'' if facts.value('loss_type') == 'dr_grpo' else other}"
    )


def _thinking(found: tuple[float, float], how: str) -> str:
    return (
        f"the thinking (where that is not logged, the completion) {how} from {found[0]:.0f} to {found[1]:.0f} tokens "
        "and the reward did not clearly rise"
    )


def _sampler_mismatch(level: float, levels: Levels, facts: Facts, difference: Series) -> str | None:
    now = recent_mean(difference, _few(levels.window))
    if now is None or now < level:
        return None
    return (
        f"sampler and trainer differ by {now:.3g} nats per token in their log-probabilities (0.01 to 0.03 is usual in "
        f"bfloat16): {same_distribution(facts)}"
    )


def _inverted_reward(level: float, levels: Levels, facts: Facts, share: Series) -> str | None:
    now = recent_mean(share, _few(levels.window))
    if now is None or now < level:
        return None
    return (
        f"PEAR scored {now:.0%} of the correct completions below a wrong one, so the model learns to be wrong: give it "
        "a floor of 0.1 (pear_floor: 0.1), and keep pear_format_score below it"
    )


def _pear_lengthens(level: float, levels: Levels, facts: Facts, share: Series) -> str | None:
    now = recent_mean(share, levels.window)
    # An update without a pair logs nothing, and counts with the next one's value: few values say little.
    if now is None or now > level or _observations(share[-levels.window :]) < _few(levels.window):
        return None
    length = facts.value("max_completion_length") or 1024
    return (
        f"of two correct answers to a question PEAR preferred the shorter one in only {now:.0%} of the cases of the "
        f"last {levels.window} updates, so it rewards long answers here: reward their length itself instead of pear, "
        f"for example by {{name: cosine_scaled, max_len: {length}, min_value_wrong: 0, max_value_wrong: 0}}"
    )


def _gradient_jump(level: float, levels: Levels, facts: Facts, norm: Series) -> str | None:
    times = jump(norm, levels.window, float(facts.value("max_grad_norm") or 0))
    if times is None or times < level:
        return None
    clipped = "" if facts.value("max_grad_norm") else ", and set max_grad_norm to 1"
    return (
        f"the gradient norm jumped to {norm[-1]:.3g}, {times:.0f} times its median of {levels.window} updates: "
        f"{facts.halved('learning_rate', 'lower')}{clipped}"
    )


def _few(window: int) -> int:
    return max(1, window // 4)


@dataclass(frozen=True)
class Check:
    """One problem that the doctor looks for.

    Attributes:
        name: of the finding, and of its level.
        metrics: that it reads; each has one or more names, of which the first that is logged is used.
        say: takes the level, all levels, the facts and the metrics' series; returns one sentence, or None.
        compares: it compares two windows by their spread.
    """

    name: str
    metrics: tuple[tuple[str, ...], ...]
    say: Callable[..., str | None]
    compares: bool = False


CHECKS = (
    Check("entropy_collapse", (("entropy",), ("reward",)), _entropy_collapse, True),
    Check("entropy_runaway", (("entropy",), ("reward",)), _entropy_runaway, True),
    Check("rule_idle", (("entropy_clip/dropped",),), _rule_idle),
    Check("rule_at_bound", (("entropy_clip/at_bound", "entropy_clip/dropped"),), _rule_at_bound),
    Check("no_spread", (("frac_reward_zero_std",),), _no_spread),
    Check("truncated", (("completions/clipped_ratio",),), _truncated),
    Check("thinking_collapse", (_LENGTH, ("reward",)), _thinking_collapse, True),
    Check("thinking_explosion", (_LENGTH, ("reward",)), _thinking_explosion, True),
    Check("sampler_mismatch", (("sampling/sampling_logp_difference/mean",),), _sampler_mismatch),
    Check("inverted_reward", (("pear/below_wrong",),), _inverted_reward),
    Check("pear_lengthens", (("pear/prefers_shorter",),), _pear_lengthens),
    Check("gradient_jump", (("grad_norm",),), _gradient_jump),
)
FINDINGS = tuple(check.name for check in CHECKS)


@dataclass(frozen=True)
class Finding:
    """What was found, after which update; the message is one line."""

    name: str
    step: int
    message: str


class Watch:
    """The metrics of a run so far, and what was found in them; each finding is reported once.

    Args:
        levels: when to report.
        facts: what the sentences name.
        start: updates that were done before the first log.
    """

    def __init__(self, levels: Levels, facts: Facts, start: int = 0) -> None:
        self.levels = levels
        self._facts = facts
        self._series: dict[str, list[float]] = {}
        self._ends: dict[str, int] = {}  # the update that a series goes up to
        self._logged = start
        self._spacing = 1  # updates between two logs
        self._found: set[str] = set()

    def add(self, step: int, logs: Mapping[str, Any]) -> list[Finding]:
        """The new findings in a log after update `step`.

        A value counts for every update since the metric's previous log: windows are counted in updates, not in logs.
        """
        fresh = set()
        for name in _METRICS & logs.keys():
            value = logs[name]
            if isinstance(value, int | float) and math.isfinite(value):
                updates = step - self._ends.get(name, self._logged)
                self._series.setdefault(name, []).extend([float(value)] * updates)
                self._ends[name] = step
                fresh.add(name)
        if not fresh:  # an evaluation, or the summary at the end
            return []
        self._spacing = max(1, step - self._logged)
        self._logged = step
        found = [
            Finding(check.name, step, message)
            for check in CHECKS
            if check.name not in self._found and (message := self._judge(check, fresh)) is not None
        ]
        self._found |= {finding.name for finding in found}
        return found

    def _judge(self, check: Check, fresh: set[str]) -> str | None:
        level = getattr(self.levels, check.name)
        names = [next((name for name in names if name in self._series), "") for names in check.metrics]
        if level is None or "" in names or fresh.isdisjoint(names):
            return None
        levels = self.levels.spaced(self._spacing) if check.compares else self.levels
        return check.say(level, levels, self._facts, *(self._series[name] for name in names))


_METRICS = {name for check in CHECKS for names in check.metrics for name in names}
