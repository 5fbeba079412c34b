"""Text from tokens as they arrive, without incomplete characters and without parts of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"  # what a decoder writes for an incomplete character


class TextStream:
    """Decodes one completion token by token. Special tokens, a stop text and all text after it are left out.

    Args:
        tokenizer: of the model.
        stop: texts that end the completion.

    Attributes:
        stopped: a stop text has been found.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # A token's text depends on the one before it: `_context` to `_shown` is decoded only for that.
        self._context = 0
        self._shown = 0
        self._held = ""
        self.stopped = False

    def add(self, token_id: int) -> str:
        """The text that can be shown after one more token; it may lack the last characters."""
        self._ids.append(token_id)
        before, after = self._decoded(self._context, self._shown), self._decoded(self._context, len(self._ids))
        if after.endswith(_BROKEN) and len(self._ids) - self._shown < 8:  # a character has at most four bytes
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return self._release(after[len(before) :])

    def finish(self) -> str:
        """The remaining text when the completion has ended without a stop text."""
        if self.stopped:
            return ""
        before, after = self._decoded(self._context, self._shown), self._decoded(self._context, len(self._ids))
        self._context = self._shown = len(self._ids)
        left = self._release(after[len(before) :])
        if not self.stopped:
            left, self._held = left + self._held, ""
        return left

    def _decoded(self, start: int, end: int) -> str:
        return self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True) if start < end else ""

    def _release(self, new: str) -> str:
        text = self._held + new
        if not self._stop:
            return text
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may begin `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
