"""A conversation is recognised by what is said, in whatever form a client repeats it."""

from __future__ import annotations

from typing import Any

import pytest

from entropy_rft.router.conversation import digest

USER: dict[str, Any] = {"role": "user", "content": "2 + 2?"}
CALLS = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
CALLED: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": CALLS}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([USER], [{**USER, "content": [{"type": "input_text", "text": "2 + 2?"}]}]),
        ([USER], [{**USER, "content": [{"type": "text", "text": "2 + 2?", "cache_control": {"type": "ephemeral"}}]}]),
        ([USER, CALLED], [USER, {**CALLED, "reasoning": "Let me see."}]),
        ([{**USER, "content": [{**IMAGE, "cache_control": {}}]}], [{**USER, "content": [IMAGE]}]),
    ],
)
def test_the_same_in_another_form(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    assert digest(before, len(before) - 1) == digest(after, len(after) - 1) is not None


@pytest.mark.parametrize(
    "other",
    [
        [{**USER, "content": "2 + 3?"}],
        [{**USER, "role": "system"}],
        [{**USER, "content": [{"type": "text", "text": "2 + 2?"}, IMAGE]}],
        [USER, CALLED],
        [USER, {**CALLED, "tool_calls": []}],
    ],
)
def test_what_is_another_one(other: list[dict[str, Any]]) -> None:
    assert digest(other, len(other) - 1) != digest([USER], 0)


def test_only_what_stands_up_to_the_last_counts() -> None:
    assert digest([USER, CALLED], 0) == digest([USER], 0)
    assert digest([{"role": "user", "content": {1}}], 0) is None
