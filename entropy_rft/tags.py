"""The tags around the thinking."""

from __future__ import annotations

THINK_END = "</think>"
"""What ends the thinking where nothing else is named: the default of every `think_end_token`, and TRL's own tag."""


def opening_tag(think_end_token: str) -> str | None:
    """``<think>`` for ``</think>``, ``[THINK]`` for ``[/THINK]``; None where the thinking ends with no closing tag."""
    return think_end_token.replace("/", "", 1) if "/" in think_end_token[1:3] else None
