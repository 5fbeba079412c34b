"""TRL's cosine-scaled reward, with a time limit on each check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from entropy_rft.rewards.accuracy import Accuracy
from entropy_rft.rewards.text import said
from entropy_rft.rewards.values import reward_name

# For each verdict, an answer and a gold that TRL's own check scores so without delay, in place of the model's answer.
_STANDS_FOR: dict[float | None, tuple[str, str]] = {1.0: (r"\boxed{1}", "1"), 0.0: (r"\boxed{0}", "1"), None: ("", "")}


class CosineScaled:
    """The reward of `trl.rewards.get_cosine_scaled_reward`, with the time limit of :class:`Accuracy` on its checks.

    TRL's reward calls math-verify by itself. So each completion is checked by :class:`Accuracy` first. Then TRL's
    reward gets a plain answer with the same verdict instead of the completion, and the completion's own token ids: the
    schedule and its values are TRL's.

    Args:
        reward: TRL's.
    """

    def __init__(self, reward: Callable[..., list[float | None]]) -> None:
        self.__name__ = reward_name(reward)
        self.reward = reward

    def __call__(
        self, completions: Sequence[Any], solution: Sequence[str], completion_ids: Sequence[list[int]], **kwargs: Any
    ) -> list[float | None]:
        """One reward a completion, by its verdict and its length in tokens; ``None`` if the gold cannot be parsed."""
        verdicts = Accuracy()(completions=completions, solution=solution)
        pairs = [_STANDS_FOR[verdict] for verdict in verdicts]
        return self.reward(
            completions=[said(answer) for answer, _ in pairs],
            solution=[gold for _, gold in pairs],
            completion_ids=completion_ids,
            **kwargs,
        )
