"""The chat template's variables of a request, as vLLM 0.31 makes them."""

from __future__ import annotations

from typing import Any

import pytest

from entropy_rft.effort import template_variables
from entropy_rft.router.dialects import DIALECTS


@pytest.mark.parametrize(
    ("effort", "own", "expected"),
    [
        (None, None, {}),
        (None, {"depth": 1}, {"depth": 1}),
        ("low", None, {"reasoning_effort": "low", "enable_thinking": True}),
        ("none", {"depth": 1}, {"reasoning_effort": "none", "enable_thinking": False, "depth": 1}),
        ("none", {"enable_thinking": True}, {"reasoning_effort": "none", "enable_thinking": True}),
        ("low", {"reasoning_effort": "high"}, {"reasoning_effort": "low", "enable_thinking": True}),
        # For vLLM "auto" is no effort of its own.
        ("auto", {"reasoning_effort": "high"}, {"reasoning_effort": "high", "enable_thinking": True}),
    ],
)
def test_the_field_wins_over_a_variable_of_its_name(
    effort: str | None, own: dict[str, Any] | None, expected: dict[str, Any]
) -> None:
    assert template_variables(effort, own) == expected
    # What the probe sees of a client's request is made in the same way.
    body = {"messages": [{"role": "user", "content": "2+2?"}], "reasoning_effort": effort, "chat_template_kwargs": own}
    assert (DIALECTS["chat"].question(body).chat_template_kwargs or {}) == expected
