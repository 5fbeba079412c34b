"""The model names that the package defines itself."""

from __future__ import annotations

from pathlib import Path

from entropy_rft.assets import TINY_REASONER


def model_source(name: str) -> str:
    """The directory of ``tiny_reasoner``; any other name unchanged, with a leading ``~`` expanded."""
    return str(TINY_REASONER) if name == "tiny_reasoner" else str(Path(name).expanduser() if name[:1] == "~" else name)
