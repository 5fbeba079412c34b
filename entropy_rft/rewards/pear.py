"""PEAR, the phase-entropy-aware reward (arXiv 2510.08026)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, groupby
from typing import Any

from entropy_rft.errors import UserTypeError, UserValueError
from entropy_rft.rewards.parameters import is_async, parameters_of
from entropy_rft.rewards.values import reward_name, scored

Reward = Callable[..., "list[float | None]"]


def pear_penalty(h_think: float, h_answer: float, alpha: float = 1.0) -> float:
    """``P = max(0, H_think - α H_answer)``, nats."""
    difference = h_think - alpha * h_answer
    # Not max(): a NaN entropy must come out as NaN (an unscorable completion), not as no penalty.
    return 0.0 if difference <= 0 else difference


def shorter_preferred(
    prompts: Sequence[Any],
    correct: Sequence[float | None],
    rewards: Sequence[float | None],
    lengths: Sequence[int],
) -> list[float]:
    """How often the reward prefers the shorter of two correct answers to one question.

    The penalty is a mean over tokens, so it need not grow with the length: a longer text with the same uncertain tokens
    has a smaller mean. Below 0.5 the reward favours length.

    Args:
        prompts: of each completion; the completions of one question stand side by side. They are compared as text, so
            prompts with images, whose text differs, form no pairs.
        correct: above 0 for a correct answer.
        rewards: of each completion.
        lengths: tokens of each completion.

    Returns:
        The share of pairs for each question with at least one pair; pairs of equal length or equal reward do not count.
    """
    shares = []
    for _, own in groupby(range(len(prompts)), key=[str(prompt) for prompt in prompts].__getitem__):
        right = [
            (lengths[i], reward)
            for i in own
            if (correct[i] or 0) > 0 and (reward := rewards[i]) is not None and not math.isnan(reward)
        ]
        pairs = [(a, b) for a, b in combinations(sorted(right), 2) if a[0] < b[0] and a[1] != b[1]]
        if pairs:
            shares.append(sum(shorter[1] > longer[1] for shorter, longer in pairs) / len(pairs))
    return shares


class PEARReward:
    """Reward a correct answer less, the more the entropy of its thinking exceeds that of its answer.

    With ``P = max(0, H_think - α H_answer)``, the phase entropies being means of the old policy's token entropies in
    nats::

        r = min(1, score - P)     for a correct answer, never below `floor` if one is set
        r = format_score          otherwise

    Why a floor: nothing in the published formula bounds r from below. With P above 1 (``score = 1``) a correct answer
    scores below a wrong one, and GRPO then learns to be wrong with confidence. That happens with models whose thinking
    entropy is above 1 nat, such as small ones, or ones early in training. ``floor=None`` is the published formula. A
    small positive floor, such as 0.1, keeps every correct answer above a wrong one at ``format_score = 0``, and leaves
    the published reward unchanged wherever P is below ``score - floor``.

    The object is picklable if `correctness` is, and works with conversational and plain completions alike: it does
    not read the text itself.

    Args:
        correctness: a TRL reward function; a value above 0 means correct, ``None`` (cannot be scored) stays ``None``.
        alpha: weight of the answer's entropy. Published ablation: -1, 0, 0.5, 1, 2.
        score: ``s``, the reward of a correct answer without penalty.
        format_score: the reward of an answer that is not correct.
        floor: lower bound of a correct answer's reward; ``None`` for none.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.

    Example:

    ```python
    >>> from trl.rewards import accuracy_reward
    >>> reward = PEARReward(accuracy_reward)
    >>> completion = [{"role": "assistant", "content": r"\\boxed{3}"}]
    >>> reward(completions=[completion], solution=["3"], phase_entropies=[(0.5, 0.25)])
    [0.75]
    ```
    """

    __name__ = "pear_reward"

    def __init__(
        self,
        correctness: Reward,
        alpha: float = 1.0,
        score: float = 1.0,
        format_score: float = 0.0,
        floor: float | None = None,
    ) -> None:
        if not callable(correctness) or isinstance(correctness, type):
            raise UserTypeError(f"correctness must be a TRL reward function, got {correctness!r}")
        if is_async(correctness):
            raise UserTypeError("correctness must be a synchronous reward function, got a coroutine function")
        for name, value in (("alpha", alpha), ("score", score), ("format_score", format_score), ("floor", floor)):
            if value is None and name == "floor":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserTypeError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value):
                raise UserValueError(f"{name} must be finite, got {value}")
        if floor is not None and floor > min(1.0, score):
            raise UserValueError(
                f"floor must not be above the best reward min(1, score) = {min(1.0, score)}, got {floor}"
            )
        self.correctness = correctness
        self.alpha = alpha
        self.score = score
        self.format_score = format_score
        self.floor = floor

    def penalty(self, h_think: float, h_answer: float) -> float:
        """``P = max(0, H_think - α H_answer)``, nats."""
        return pear_penalty(h_think, h_answer, self.alpha)

    def __call__(
        self,
        completions: Sequence[Any],
        phase_entropies: Sequence[tuple[float, float]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """One reward per completion; `phase_entropies` holds its ``(H_think, H_answer)``, nats."""
        if phase_entropies is None:
            raise UserValueError(
                "PEARReward got no phase_entropies: train with entropy_rft.EntropyGRPOTrainer, which computes them "
                "(a plain trl.GRPOTrainer does not; a reward that wraps this one must name phase_entropies in its own "
                "signature)"
            )
        if log_metric is not None:
            kwargs["log_metric"] = log_metric
        if len(phase_entropies) != len(completions):
            raise UserValueError(
                f"{len(completions)} completions need as many phase_entropies, got {len(phase_entropies)}"
            )
        if "phase_entropies" in parameters_of(self.correctness):
            kwargs["phase_entropies"] = phase_entropies
        returned = self.correctness(completions=completions, **kwargs)
        correct = scored(returned, reward_name(self.correctness), len(completions))
        rewards: list[float | None] = []
        for value, (h_think, h_answer) in zip(correct, phase_entropies, strict=True):
            if value is None:
                rewards.append(None)
                continue
            penalty = self.penalty(h_think, h_answer)
            if log_metric is not None:
                # One call a completion: the trainer then averages over completions, not over ranks.
                log_metric("pear/penalty", penalty)
            reward = self._reward(penalty) if value > 0 else float(self.format_score)
            if log_metric is not None and value > 0:
                log_metric("pear/below_wrong", float(reward < self.format_score))  # share of the correct ones
            rewards.append(reward)
        if log_metric is not None and {"prompts", "completion_ids"} <= kwargs.keys():
            lengths = [len(ids) for ids in kwargs["completion_ids"]]
            for share in shorter_preferred(kwargs["prompts"], correct, rewards, lengths):
                log_metric("pear/prefers_shorter", share)  # one call a question
        return rewards

    def _reward(self, penalty: float) -> float:
        reward = self.score - penalty
        # Comparisons instead of min() and max(), so that a NaN stays one.
        if reward > 1.0:
            return 1.0
        return float(self.floor) if self.floor is not None and reward < self.floor else reward

    def __repr__(self) -> str:
        return (
            f"PEARReward({reward_name(self.correctness)}, alpha={self.alpha}, score={self.score}, "
            f"format_score={self.format_score}, floor={self.floor})"
        )
