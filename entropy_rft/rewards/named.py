"""The rewards a recipe can name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from entropy_rft.errors import UserMistake, UserValueError, user_mistake
from entropy_rft.rewards.pear import PEARReward
from entropy_rft.suggestions import did_you_mean

_TRL = {
    "accuracy": "accuracy_reward",
    "reasoning_accuracy": "reasoning_accuracy_reward",
    "think_format": "think_format_reward",
}
REWARD_NAMES = ("task", "pear", *_TRL)


def build_rewards(
    names: Sequence[str], task_rewards: Sequence[Callable[..., Any]], pear: dict[str, Any] | None = None
) -> list[Callable[..., Any]]:
    """The reward functions called `names`, in that order.

    Args:
        names: ``task`` (what the task brings), ``pear`` (PEAR around the task's first reward), ``accuracy``,
            ``reasoning_accuracy``, ``think_format`` (TRL's), or ``module:function`` for one's own.
        task_rewards: the task's reward functions; the first tells right from wrong.
        pear: further arguments of :class:`PEARReward`.

    Raises:
        ValueError: for a name that is none of these, naming the nearest.
    """
    if not names:
        raise UserValueError(f"rewards is empty: name at least one of {', '.join(REWARD_NAMES)}, or module:function")
    rewards: list[Callable[..., Any]] = []
    for name in names:
        if name == "task":
            rewards += task_rewards
        elif name == "pear":
            try:
                rewards.append(PEARReward(task_rewards[0], **(pear or {})))
            except UserMistake as error:  # PEARReward names its own argument
                raise user_mistake(error, "pear_") from None
        elif name in _TRL:
            rewards.append(getattr(importlib.import_module("trl.rewards"), _TRL[name]))
        elif ":" in name:
            rewards.append(_own(name))
        else:
            raise UserValueError(
                f"rewards: there is no reward {name!r}{did_you_mean(name, REWARD_NAMES)} (known: "
                f"{', '.join(REWARD_NAMES)}, or module:function)"
            )
    return rewards


def _own(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        reward = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserValueError(f"rewards: {name!r} cannot be imported: {error}") from error
    if not callable(reward):
        raise UserValueError(f"rewards: {name!r} is not callable")
    return reward
