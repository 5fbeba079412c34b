"""A conversation has no id: it is recognised by what it begins with."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import orjson


def digest(messages: Sequence[dict[str, Any]], last: int) -> bytes | None:
    """Of the messages up to `last`, which later requests of the conversation repeat, perhaps in another form.

    What counts is the role, what is said (`said`), and the tools that are called: text may become a list of parts,
    marks of a cache move on, and the reasoning of earlier answers may be left out.

    Args:
        messages: of the conversation, as OpenAI's.
        last: the place of the last one that counts.

    Returns:
        (16,) bytes; ``None`` where a message is not JSON.
    """
    try:
        parts = [
            (message.get("role"), said(message.get("content")), message.get("tool_calls"), message.get("tool_call_id"))
            for message in messages[: last + 1]
        ]
        return blake2b(orjson.dumps(parts), digest_size=16).digest()
    except TypeError:  # orjson.JSONEncodeError is one
        return None


def said(content: Any) -> str:
    """The text of a content, whatever its form; parts that are no text are taken as they are."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and isinstance(content[0], dict | str):
        return "\n".join(_part(part) for part in content)
    return "" if content is None else orjson.dumps(content).decode()


def _part(part: Any) -> str:
    if isinstance(part, dict):
        text = part.get("text")
        if isinstance(text, str):
            return text
        part = {name: value for name, value in part.items() if name != "cache_control"}
    return orjson.dumps(part, option=orjson.OPT_SORT_KEYS).decode()
