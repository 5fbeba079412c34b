"""TRL's rewards, fitted to how a model writes: which text ends its thinking, and who opens it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.rewards.checking import CHECKER
from entropy_rft.rewards.pear import PEARReward
from entropy_rft.rewards.tags import opening_tag

THINKING_OPENED = "thinking_opened"
"""The keyword that says, for each completion, whether its prompt ends with the tag that opens the thinking."""


def fitted(reward: Any, think_end_token: str) -> Any:
    """`reward`, looking for `think_end_token` where TRL's looks for ``</think>``, each of its checks coming to an end.

    That is for TRL's `accuracy_reward`, `reasoning_accuracy_reward` and `think_format_reward`, alone or within
    :class:`PEARReward`. A reward with a method `fitted` is asked for its own. Anything else is returned as it is.
    """
    from trl import rewards

    if isinstance(reward, PEARReward):
        correctness = fitted(reward.correctness, think_end_token)
        if correctness is not reward.correctness:
            reward = copy.copy(reward)
            reward.correctness = correctness
        return reward
    if reward is rewards.accuracy_reward:
        return Accuracy("accuracy_reward")
    if reward is rewards.reasoning_accuracy_reward:
        return Accuracy("reasoning_accuracy_reward", [think_end_token])
    if reward is rewards.think_format_reward:
        return ThinkFormat(think_end_token)
    fit = getattr(reward, "fitted", None)
    return reward if fit is None else fit(think_end_token)


class Accuracy:
    """TRL's accuracy reward of that name, one completion at a time; see :mod:`entropy_rft.rewards.checking`."""

    def __init__(self, name: str, reasoning_delimiters: list[str] | None = None) -> None:
        self.__name__ = name
        self.reasoning_delimiters = reasoning_delimiters

    def __call__(
        self,
        completions: Sequence[Any],
        solution: Sequence[str],
        log_extra: Callable[[str, list], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """One reward a completion: 1 for a right answer, 0 for a wrong one, ``None`` where the gold is unreadable."""
        budget = CHECKER.start_batch()
        checked = [
            CHECKER.check(self.__name__, content_of(completion), gold, self.reasoning_delimiters, budget)
            for completion, gold in zip(completions, solution, strict=True)
        ]
        if log_extra is not None and checked:
            for name in checked[0][1]:
                log_extra(name, [columns[name] for _, columns in checked])
        return [value for value, _ in checked]


class ThinkFormat:
    """TRL's `think_format_reward` for any marker: 1 for a completion that thinks in one block and then answers.

    Where the chat template has opened the block, the completion starts inside it.
    """

    __name__ = "think_format_reward"

    def __init__(self, think_end_token: str) -> None:
        opening = opening_tag(think_end_token)
        if opening is None:
            raise UserValueError(
                f"rewards: think_format needs tags around the thinking, but think_end_token {think_end_token!r} is no "
                "closing tag such as </think>: leave think_format out"
            )
        self.think_end_token = think_end_token
        self.opening = opening

    def __call__(
        self, completions: Sequence[Any], thinking_opened: Sequence[bool] | None = None, **kwargs: Any
    ) -> list[float]:
        """One reward a completion; `thinking_opened` says which prompts end with the opening tag."""
        from trl.rewards import think_format_reward

        opened = [False] * len(completions) if thinking_opened is None else thinking_opened
        texts = []
        for completion, is_opened in zip(completions, opened, strict=True):
            text = content_of(completion)
            if self.think_end_token != "</think>":
                # What TRL's pattern looks for must not be there in another meaning.
                text = text.replace("<think>", "").replace("</think>", "")
                text = text.replace(self.think_end_token, "</think>").replace(self.opening, "<think>")
            texts.append([{"role": "assistant", "content": "<think>" * bool(is_opened) + text}])
        return think_format_reward(texts)


def content_of(completion: Any) -> str:
    """The text of a completion: plain, or its first message as TRL's rewards read it."""
    if isinstance(completion, str):
        return completion
    content = completion[0].get("content")
    return content if isinstance(content, str) else ""


def parameters_of(reward: Any) -> set[str]:
    """The keywords that a reward names in its signature; of PEAR also those of the reward it wraps, which gets them."""
    try:
        own = set(inspect.signature(reward).parameters)
    except ValueError:  # a callable written in C names no parameters
        return set()
    inner = getattr(reward, "correctness", None)
    return own if inner is None else own | parameters_of(inner)
