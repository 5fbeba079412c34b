"""The text that ends the thinking: where a tokenizer writes it, and how it stays in the text that rewards read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from entropy_rft.entropy import phase_masks
from entropy_rft.errors import UserValueError
from entropy_rft.tags import opening_tag

# Replaces a token that is not the model's own; no token's text contains it.
_NOT_OURS = "\0"


class ThinkEndMarker:
    """Finds ``</think>`` in token ids.

    A token of its own, added to the vocabulary (reasoning models), is searched for as that token. Any other text can be
    written in more than one way: Qwen2.5 ends ``"</think>\\n"`` with a token ``">\\n"``, and SmolLM2 writes ``"####"``
    after a space as the token ``" ####"``. Then the text itself is searched for, and every token that holds a part of
    it belongs to neither phase.

    Args:
        tokenizer: of the model that writes the completions.
        text: the marker.

    Attributes:
        text: the marker.
        ids: the token ids of the marker's text alone; empty when the tokenizer cannot write it.

    Raises:
        ValueError: for a marker without text.
    """

    def __init__(self, tokenizer: Any, text: str) -> None:
        if not isinstance(text, str) or not text:
            raise UserValueError(
                f"think_end_token must be the text that ends the thinking, such as </think>, got {text!r}"
            )
        self.text = text
        self.ids: list[int] = _ids_of(tokenizer, text)
        self._tokenizer = tokenizer
        self._opening = opening_tag(text)
        added = getattr(tokenizer, "added_tokens_decoder", self.ids)
        self._is_one_token = len(self.ids) == 1 and self.ids[0] in added
        self._written = text
        if self.ids and not self._is_one_token:  # SentencePiece puts a word boundary before a text that stands alone
            self._written = "".join(tokenizer.convert_ids_to_tokens(self.ids)).lstrip("▁")

    def __bool__(self) -> bool:
        return bool(self.ids)

    def phases(self, completion_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Thinking and answer, as :func:`~entropy_rft.entropy.phase_masks`; both ``(B, T)`` bool.

        Without a marker everything valid is thinking.
        """
        if not self.ids:
            return mask != 0, torch.zeros_like(mask, dtype=torch.bool)
        if self._is_one_token:
            return phase_masks(completion_ids, mask, self.ids)
        valid = mask != 0
        thinking, answer = valid.clone(), torch.zeros_like(valid)
        for row, (ids, own) in enumerate(zip(completion_ids.tolist(), valid.tolist(), strict=True)):
            start, end = self._span(ids, own)
            thinking[row, start:] = False
            answer[row, end:] = valid[row, end:]
        return thinking, answer

    @property
    def reach(self) -> int:
        """Most tokens that one occurrence of the marker can have."""
        return 1 if self._is_one_token else len(self._written)

    def last_end(self, ids: Sequence[int]) -> int:
        """Position after the last token with a part of the last occurrence in `ids`; -1 where there is none."""
        if not self.ids:
            return -1
        if self._is_one_token:
            return next((i + 1 for i in reversed(range(len(ids))) if ids[i] == self.ids[0]), -1)
        pieces = [str(piece) for piece in self._tokenizer.convert_ids_to_tokens(list(ids))]
        found = "".join(pieces).rfind(self._written)
        if found < 0:
            return -1
        last, position = 0, 0
        for index, piece in enumerate(pieces):
            if position < found + len(self._written):
                last = index
            position += len(piece)
        return last + 1

    def reward_text(self, text: str, ids: Sequence[int]) -> str:
        """What a reward reads of the completion `ids`: `text`, decoded without special tokens, but with the tags.

        Decoding leaves the tags out where they are special tokens, but an answer parser needs them to remove the
        thinking. The phases are those of the ids, so the reward must find the same end of the thinking.
        """
        if not self._special_tags and (not self.ids or self.text in text):
            return text
        kept = [i for i in ids if i not in self._special or i in self._special_tags]
        decoded = str(self._tokenizer.decode(kept, skip_special_tokens=False))
        return decoded if self._special_tags or self.text in decoded else text

    def opened(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends with the tag that opens the thinking, as some chat templates do."""
        if self._opening is None:
            return False
        end = list(prompt_ids)[-len(self._opening) - 8 :]  # a token is a character at least; some space may follow
        return str(self._tokenizer.decode(end, skip_special_tokens=False)).rstrip().endswith(self._opening)

    @cached_property
    def _special(self) -> frozenset[int]:
        """The tokens that decoding leaves out."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        named = getattr(self._tokenizer, "all_special_ids", ())
        return frozenset([*named, *(i for i, token in added.items() if token.special)])

    @cached_property
    def _special_tags(self) -> frozenset[int]:
        """The special tokens that are part of a thinking tag."""
        tags = [*self.ids, *([] if self._opening is None else _ids_of(self._tokenizer, self._opening))]
        return self._special.intersection(tags)

    def _span(self, ids: list[int], own: list[bool]) -> tuple[int, int]:
        """Positions of the first token with a part of the marker and of the first one after it."""
        pieces = [
            str(piece) if ours else _NOT_OURS
            for piece, ours in zip(self._tokenizer.convert_ids_to_tokens(ids), own, strict=True)
        ]
        found = "".join(pieces).find(self._written)
        if found < 0:
            return len(ids), len(ids)
        start, last, position = 0, 0, 0
        for index, piece in enumerate(pieces):
            if position <= found:
                start = index
            if position < found + len(self._written):
                last = index
            position += len(piece)
        return start, last + 1


def _ids_of(tokenizer: Any, text: str) -> list[int]:
    """The ids that spell `text`; empty where the tokenizer drops or replaces a part of it."""
    try:
        ids = list(tokenizer.encode(text, add_special_tokens=False))
    except Exception:  # tokenizers raises nothing narrower, for instance for an unknown word without [UNK]
        return []
    if not ids or tokenizer.unk_token_id in ids:
        return []
    spelled = tokenizer.decode(ids, skip_special_tokens=False)
    return ids if "".join(spelled.split()) == "".join(text.split()) else []


def missing_marker(text: str, tokenizer: Any) -> str:
    """The message for a tokenizer that cannot write a marker that something needs."""
    return (
        f"think_end_token {text!r} is not in the vocabulary of {type(tokenizer).__name__}, and a reward needs the "
        "entropies before and after it: name the text with which this model ends its thinking"
    )
