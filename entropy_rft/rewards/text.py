"""The text of a completion, as rewards read it."""

from __future__ import annotations

from typing import Any


def content_of(completion: Any) -> str:
    """The text of a completion: plain, or its first message as TRL's rewards read it."""
    if isinstance(completion, str):
        return completion
    content = completion[0].get("content")
    return content if isinstance(content, str) else ""


def said(text: str) -> list[dict[str, str]]:
    """A completion that says `text`, as TRL's rewards read one."""
    return [{"role": "assistant", "content": text}]
