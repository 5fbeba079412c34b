"""A model in this process that answers OpenAI's protocol, so that the router works without any other server.

For the tiny reasoner and models of its size; use vLLM in a real deployment. The names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "EmbeddedEngine": "entropy_rft.router.embedded.app",
    "EmbeddedServer": "entropy_rft.router.embedded.server",
}

if TYPE_CHECKING:
    from entropy_rft.router.embedded.app import EmbeddedEngine
    from entropy_rft.router.embedded.server import EmbeddedServer

__all__ = ["EmbeddedEngine", "EmbeddedServer"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
