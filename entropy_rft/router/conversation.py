"""A conversation has no id: it is recognised by what it begins with."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import orjson


def digest(messages: Sequence[dict[str, Any]], last: int) -> bytes | None:
    """Of the messages up to `last`, which later requests of the conversation repeat.

    Args:
        messages: of the conversation, as OpenAI's.
        last: the place of the last one that counts.

    Returns:
        (16,) bytes; ``None`` where a message is not JSON.
    """
    try:
        return blake2b(orjson.dumps(list(messages[: last + 1])), digest_size=16).digest()
    except TypeError:  # orjson.JSONEncodeError is one
        return None
