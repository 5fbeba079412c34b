"""The interfaces that clients may speak, one module each; `DIALECTS` is the one list of them."""

from __future__ import annotations

from entropy_rft.router.dialects.base import Dialect, Endpoint
from entropy_rft.router.dialects.chat import CHAT
from entropy_rft.router.dialects.completions import COMPLETIONS
from entropy_rft.router.dialects.messages import COUNT_TOKENS, MESSAGES
from entropy_rft.router.dialects.responses import RESPONSES
from entropy_rft.router.errors import OPENAI, ErrorShape

__all__ = ["BY_PATH", "DIALECTS", "Dialect", "Endpoint", "errors_of"]

_ALL = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS)
DIALECTS: dict[Endpoint, Dialect] = {dialect.name: dialect for dialect in _ALL}
"""By name."""
BY_PATH: dict[str, Dialect] = {dialect.path: dialect for dialect in _ALL}
"""By the path that is posted to."""


def errors_of(path: str) -> ErrorShape:
    """The shape of errors that a client of `path` expects; OpenAI's where no dialect is at it or above it."""
    for known, dialect in BY_PATH.items():
        if path == known or path.startswith(known + "/"):
            return dialect.errors
    return OPENAI
