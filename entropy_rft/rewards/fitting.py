"""TRL's rewards, adapted to the marker that a model uses, and with time limits on their checks."""

from __future__ import annotations

import copy
import functools
from typing import Any

from entropy_rft.rewards.accuracy import Accuracy
from entropy_rft.rewards.bound import Bound
from entropy_rft.rewards.cosine_scaled import CosineScaled
from entropy_rft.rewards.pear import PEARReward
from entropy_rft.rewards.think_format import ThinkFormat
from entropy_rft.rewards.values import reward_name


def fitted(reward: Any, think_end_token: str) -> Any:
    """`reward` with `think_end_token` where TRL's has ``</think>``, and with a time limit on each of its checks.

    That is for TRL's `accuracy_reward`, `reasoning_accuracy_reward`, `think_format_reward` and cosine-scaled reward,
    alone or within :class:`PEARReward`. A reward with a method `fitted` is asked for its own. Anything else is returned
    as it is: TRL's other rewards check no answer, and what a reward of one's own computes is not ours to interrupt (it
    may call :class:`Accuracy`).
    """
    from trl import rewards

    if isinstance(reward, PEARReward):
        correctness = fitted(reward.correctness, think_end_token)
        if correctness is not reward.correctness:
            reward = copy.copy(reward)
            reward.correctness = correctness
        return reward
    delimiters = _delimiters(reward)
    # One that only got another name (see `build_rewards`) is the function that it wraps.
    function = reward.__wrapped__ if isinstance(reward, Bound) and not reward.arguments else reward
    ours: Any = None
    if function is rewards.accuracy_reward:
        ours = Accuracy("accuracy_reward")
    elif function is rewards.reasoning_accuracy_reward:
        ours = Accuracy("reasoning_accuracy_reward", [think_end_token])
    elif delimiters is not None:
        ours = Accuracy("reasoning_accuracy_reward", delimiters)
    elif function is rewards.think_format_reward:
        ours = ThinkFormat(think_end_token)
    elif _is_cosine_scaled(reward):
        ours = CosineScaled(reward)
    elif callable(fit := getattr(reward, "fitted", None)):
        return fit(think_end_token)
    if ours is None:
        return reward
    ours.__name__ = reward_name(reward)
    return ours


def _delimiters(reward: Any) -> list[str] | None:
    """What a recipe or `functools.partial` gave TRL's `reasoning_accuracy_reward`, if it has no other argument."""
    from trl import rewards

    if isinstance(reward, Bound):
        function, given = reward.__wrapped__, reward.arguments
    elif isinstance(reward, functools.partial) and not reward.args:
        function, given = reward.func, reward.keywords
    else:
        return None
    if function is not rewards.reasoning_accuracy_reward or given.keys() != {"reasoning_delimiters"}:
        return None
    return given["reasoning_delimiters"]


def _is_cosine_scaled(reward: Any) -> bool:
    # Its class is private to TRL, and its name may have got a number: see `build_rewards`.
    module, name = getattr(reward, "__module__", None) or "", getattr(reward, "__name__", "")
    return module.startswith("trl.rewards") and name.startswith("cosine_scaled_reward")
