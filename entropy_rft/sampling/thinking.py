"""A limit on the thinking of a completion, as vLLM's `thinking_token_budget` sets it.

The thinking is a block: it begins after the opening tag, in the prompt or in the completion, and ends with the marker.
Where the marker has no opening tag (``####``), the block begins with the completion. After so many tokens in a block
the marker's tokens are forced, one after the other. A block that the model ends itself is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor

from entropy_rft.errors import UserValueError
from entropy_rft.sampling.marker import ThinkEndMarker
from entropy_rft.tags import opening_tag


class ThinkingTags:
    """The two texts around the thinking, as a tokenizer writes them.

    Args:
        tokenizer: of the model.
        think_end_token: the marker; its opening tag is ``<think>`` for ``</think>``, none for ``####``.

    Attributes:
        end: the marker.
        start: the opening tag, or ``None``.

    Raises:
        ValueError: the tokenizer cannot write the marker or its opening tag.
    """

    def __init__(self, tokenizer: Any, think_end_token: str) -> None:
        opening = opening_tag(think_end_token)
        self.end = ThinkEndMarker(tokenizer, think_end_token)
        self.start = None if opening is None else ThinkEndMarker(tokenizer, opening)
        for marker in (self.end, self.start):
            if marker is not None and not marker:
                raise UserValueError(
                    f"thinking_tokens needs the text {marker.text!r}, which is not in the vocabulary of "
                    f"{type(tokenizer).__name__}: name the text with which this model ends its thinking"
                )
        self.reach = max(self.end.reach, 0 if self.start is None else self.start.reach)


class ThinkingBlock:
    """How far one sequence has come in its thinking, token by token.

    Args:
        tags: around the thinking.
        prompt_ids: the sequence's prompt, in which the block may begin.

    Attributes:
        open: the sequence is inside a block.
        count: tokens of the block so far, those in the prompt included.
    """

    def __init__(self, tags: ThinkingTags, prompt_ids: Sequence[int]) -> None:
        self._tags = tags
        self._tail = list(prompt_ids)[-tags.reach :]
        self.open, self.count = True, 0
        if tags.start is not None:
            begun = tags.start.last_end(prompt_ids)
            self.open = begun > tags.end.last_end(prompt_ids)
            self.count = len(prompt_ids) - begun if self.open else 0
        else:
            self._tail = []  # a marker in the prompt, such as that of an example, ends nothing

    def add(self, token: int) -> None:
        """The sequence's next token."""
        self._tail = [*self._tail, token][-self._tags.reach :]
        if self.open:
            if self._ends_with(self._tags.end):
                self.close()
            else:
                self.count += 1
        elif self._tags.start is not None and self._ends_with(self._tags.start):
            self.open = True

    def close(self) -> None:
        self.open, self.count = False, 0

    def _ends_with(self, marker: ThinkEndMarker) -> bool:
        return marker.last_end(self._tail) == len(self._tail)


class ThinkingBudget(LogitsProcessor):
    """Forces the marker in each row whose block has `limit` tokens; other rows keep their scores.

    Args:
        tags: around the thinking.
        prompt_ids: of each row, without padding.
        prompt_width: length of the padded prompts.
        limit: tokens of thinking, 0 or more.
    """

    def __init__(self, tags: ThinkingTags, prompt_ids: Sequence[Sequence[int]], prompt_width: int, limit: int) -> None:
        self._rows = [_Row(ThinkingBlock(tags, ids)) for ids in prompt_ids]
        self._marker = tags.end.ids
        self._prompt_width = prompt_width
        self._limit = limit

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] > self._prompt_width:
            for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
                row.add(token, len(self._marker))
        forced = [row.forced(self._limit) for row in self._rows]
        rows = [index for index, place in enumerate(forced) if place is not None]
        if rows:
            tokens = [self._marker[place] for place in forced if place is not None]
            scores = scores.clone()
            scores[rows] = float("-inf")
            scores[rows, tokens] = 0.0
        return scores

    def keep(self, rows: Tensor) -> None:
        """The batch has shrunk to these of its rows."""
        self._rows = [self._rows[row] for row in rows.tolist()]


class _Row:
    def __init__(self, block: ThinkingBlock) -> None:
        self.block = block
        self.place: int | None = None  # of the marker's tokens, the one to force next

    def add(self, token: int, marker_length: int) -> None:
        self.block.add(token)
        if self.place is not None:
            self.place += 1
            if self.place == marker_length:
                self.place = None
                self.block.close()

    def forced(self, limit: int) -> int | None:
        if self.place is None and self.block.open and self.block.count >= limit:
            self.place = 0
        return self.place


def longest_thinking(tags: ThinkingTags, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> int:
    """Tokens of the longest block of a completion; the part of it in the prompt counts."""
    block = ThinkingBlock(tags, prompt_ids)
    longest = block.count
    for token in token_ids:
        block.add(token)
        longest = max(longest, block.count)
    return longest
