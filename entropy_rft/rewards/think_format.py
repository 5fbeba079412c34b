"""TRL's reward for the form of the thinking, for any tags around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.rewards.text import content_of, said
from entropy_rft.tags import THINK_END, opening_tag


class ThinkFormat:
    """TRL's `think_format_reward` for any marker: 1 for a completion that thinks in one block and then answers.

    Where the chat template has opened the block, the completion starts inside it.
    """

    def __init__(self, think_end_token: str) -> None:
        opening = opening_tag(think_end_token)
        if opening is None:
            raise UserValueError(
                f"rewards: think_format needs tags around the thinking, but think_end_token {think_end_token!r} is no "
                "closing tag such as </think>: leave think_format out"
            )
        self.__name__ = "think_format_reward"
        self.think_end_token = think_end_token
        self.opening = opening

    def __call__(
        self, completions: Sequence[Any], thinking_opened: Sequence[bool] | None = None, **kwargs: Any
    ) -> list[float | None]:
        """One reward a completion; `thinking_opened` says which prompts end with the opening tag."""
        from trl.rewards import think_format_reward

        opened = [False] * len(completions) if thinking_opened is None else thinking_opened
        texts = []
        for completion, is_opened in zip(completions, opened, strict=True):
            text = content_of(completion)
            if self.think_end_token != THINK_END:
                # The tags that TRL's pattern looks for must not occur with another meaning.
                text = text.replace("<think>", "").replace(THINK_END, "")
                text = text.replace(self.think_end_token, THINK_END).replace(self.opening, "<think>")
            texts.append(said("<think>" * bool(is_opened) + text))
        return think_format_reward(texts)
